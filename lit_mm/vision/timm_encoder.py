"""Vision encoders of timm, by the name of the model."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Protocol, runtime_checkable

import timm
import torch
import torch.nn.functional as F
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from lit_mm.errors import UserError
from lit_mm.layers.activations import Checkpointing, prepare_layers
from lit_mm.layers.position import resize_grid
from lit_mm.tiling.grids import PatchGrid
from lit_mm.vision.protocol import VisionEncoder
from lit_mm.vision.vit import as_strip
from lit_mm.weights.agreement import Difference
from lit_mm.weights.config_tables import compare_timm, compare_vision

# V views, N patches, D width, C class and register tokens, P positions: C + N

# Classes of activations in timm -> names in a config.json
ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_pytorch_tanh", "QuickGELU": "quick_gelu", "SiLU": "silu"}
HEADS = ("head.", "head_dist.", "fc_norm.", "attn_pool.")  # modules behind the features; they are never built


@runtime_checkable
class HasStages(Protocol):
    """A model of timm that returns the outputs of its blocks or stages."""

    feature_info: Any

    def forward_intermediates(self, x: Tensor, indices: Any = None) -> Any:
        """Return the outputs of some blocks or stages."""
        ...

    def prune_intermediate_layers(self, indices: Any = 1) -> Any:
        """Remove the blocks or stages behind some others."""
        ...


class TimmEncoder(nn.Module, VisionEncoder):
    """A vision encoder of timm. Its features are the output of a block, or of a stage of a convolutional model.

    Blocks, norms and heads behind the features are not built. Register tokens never appear in the output. Parameters
    have timm's names below `model`; `lit_mm.weights.timm` has the key maps of other names. EVA's key bias, which is
    zero in timm, is a buffer that checkpoints hold, so that a published one survives.

    | model | timm's name |
    |---|---|
    | EVA-CLIP ViT-g (BLIP-2, XComposer) | eva_giant_patch14_clip_224, `select_layer: -2` |
    | EVA2-CLIP-E (CogVLM) | eva02_enormous_patch14_clip_224, `select_layer: -2` |
    | EVA2-CLIP-L (CogAgent) | eva02_large_patch14_clip_224, `select_layer: -2` |
    | OpenCLIP | vit_large_patch14_clip_224.laion2b |
    | OpenCLIP ConvNeXt-L (Mini-Gemini) | convnext_large_mlp.clip_laion2b_ft_soup_320, `pyramid: true` |
    | SigLIP (VILA-1.5) | vit_so400m_patch14_siglip_378, `overrides: {act_layer: gelu_tanh}` |
    | SigLIP 2 | vit_so400m_patch14_siglip_378.v2_webli |
    | DINOv2 with registers | vit_large_patch14_reg4_dinov2 |
    | DINOv3 | vit_large_patch16_dinov3 |

    Args:
        name: timm's name of the model, with or without a tag of weights.
        image_size: side of a view, pixels. None: the size of the named model.
        select_layer: index of the block (or stage) whose output is returned: -1 the last, -2 the one before.
        norm: True applies the model's last norm to the features. A convolutional model has it at its last stage only.
        drop_cls: True leaves the class token out of the output.
        drop_path: probability that a branch of the last published block is skipped for a view in training. The
            probability rises linearly from 0 at the first block.
        any_size: True accepts views of any size. The position table stays that of `image_size`; every forward resizes
            it bicubically (without antialiasing, as `ViT`) to the view's grid.
        pyramid: True returns the outputs of all stages of a convolutional model, resized bilinearly to the grid of the
            first stage and concatenated by channel; `select_layer` is then -1.
        overrides: arguments of timm's constructor that differ from those of the named model, such as
            {embed_dim: 64, depth: 2, num_heads: 4}.
        position_size: image size of the checkpoint, pixels. Its position table is resized bicubically while it is
            loaded. None: the checkpoint must have the table of `image_size`.
        eps: epsilon of all layer norms; None: that of the named model.
        weights: reference of the checkpoint that `load_pretrained` loads later; the constructor reads nothing.
        activation_checkpointing: what each block keeps for the backward pass: "none" its activations, "full" its
            inputs, "selective" (with `compile`) its inputs and its products.
        compile: compile the blocks by `torch.compile` while they train.
    Attributes:
        mean, std: constants per channel by which pixels in [0, 1] are normalised, from the model's data config.
    Raises:
        UserError: timm has no such model, refuses the overrides or the size, or the model lacks what an argument needs.
    Source: github.com/huggingface/pytorch-image-models; "pyramid": Mini-Gemini, openclip_encoder.py.
    """

    def __init__(
        self,
        name: str,
        image_size: int | None = None,
        select_layer: int = -1,
        norm: bool = False,
        drop_cls: bool = True,
        drop_path: float = 0.0,
        any_size: bool = False,
        pyramid: bool = False,
        overrides: Mapping[str, Any] | None = None,
        position_size: int | None = None,
        weights: str | None = None,
        activation_checkpointing: Checkpointing = "none",
        compile: bool = False,
        eps: float | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= drop_path < 1:
            raise UserError(f"TimmEncoder: `drop_path` is in [0, 1), got {drop_path}")
        self.mean, self.std = normalisation(name)
        model = _create(name, image_size, drop_path, dict(overrides or {}))
        for norm_layer in model.modules() if eps is not None else ():
            if isinstance(norm_layer, nn.LayerNorm):
                norm_layer.eps = eps
        tables = isinstance(model, (Eva, VisionTransformer))  # it has a sequence of positions, not maps
        if any_size and (not tables or (isinstance(model, Eva) and model.rope_mixed)):
            raise UserError(
                f"TimmEncoder: the positions of {name} cannot be resized for each view. Leave `any_size` out, and "
                "set `image_size` to the size of the views"
            )
        if pyramid and (tables or select_layer != -1):
            raise UserError(f"TimmEncoder: `pyramid` joins all stages of a convolutional model, got {name}")
        blocks = len(model.feature_info)
        if not -blocks <= select_layer <= -1:
            raise UserError(
                f"TimmEncoder: `select_layer` is -1 (the last of {blocks} of {name}) to {-blocks}, got {select_layer}"
            )
        index = blocks + select_layer
        published = set(model.state_dict())
        reductions = [info["reduction"] for info in model.feature_info]
        widths = [info["num_chs"] for info in model.feature_info]
        model.prune_intermediate_layers([index], prune_norm=not norm)
        self.name, self.model, self.index, self.norm, self.pyramid = name, model, index, norm, pyramid
        self.overrides = dict(overrides or {})
        self.width = sum(widths) if pyramid else widths[index]
        self.image_size = image_size or _published_size(model, name)
        self.any_size, self.drop_cls = any_size, drop_cls
        self.prefix_tokens = model.num_prefix_tokens if tables else 0
        has_class_token = tables and model.cls_token is not None
        self.returns_class_token = has_class_token and not drop_cls
        self.position_size, self.weights = position_size, weights
        self.activation_checkpointing, self.compiled = activation_checkpointing, compile
        self.patch_grid = PatchGrid(reductions[0] if pyramid else reductions[index], f"TimmEncoder {name}")
        self.grid = self.token_grid((self.image_size, self.image_size))
        if position_size is not None:
            self.token_grid((position_size, position_size))  # it must divide, too
        for part in model.modules():
            if "k_bias" in dict(part.named_buffers(recurse=False)):
                part.register_buffer("k_bias", part.k_bias, persistent=True)
                part.qkv_bias_separate = True  # the linear is called, so that an adapter on it acts
        self.pruned = frozenset(published - set(model.state_dict()))
        self.depths = _as_layers(model)
        self.num_layers = max(self.depths.values())
        # The model is called as a module, since ZeRO gathers its own parameters around its forward
        model.forward = self._run_padded if any_size else self._run
        prepare_layers(self, activation_checkpointing, compile)

    def token_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of a view, pixels -> (rows, columns) of patches; class and registers are not among them.

        Raises:
            UserError: a side is not a positive multiple of the patch.
        """
        return self.patch_grid(size)

    def layer_of(self, parameter_name: str) -> int:
        """Depth of a parameter, for layer-wise learning rates: 0 = embeddings, i + 1 = block i and what follows it."""
        return self.depths[parameter_name.removeprefix("model.")]

    def compare_config(self, config: dict[str, Any]) -> list[Difference]:
        """Compare the part with the config.json of its weights, see `lit_mm.weights.agreement`.

        timm's own config has the name of the model. That of a transformer has its sizes.
        """
        size = "image_size" if self.position_size is None else "position_size"
        sizes = {size: self.position_size or self.image_size}
        if "architecture" in config:
            constants = {"mean": list(self.mean), "std": list(self.std)}
            has_table = isinstance(self.model, (Eva, VisionTransformer)) and self.model.pos_embed is not None
            return compare_timm(config, self.name, self.overrides, constants | (sizes if has_table else {}))
        if not isinstance(self.model, (Eva, VisionTransformer)):
            return []
        first = self.model.blocks[0]
        activation = type(first.mlp.act).__name__
        numbers = sizes | {
            "width": self.width,
            "heads": first.attn.num_heads,
            "patch": self.patch_grid.patch,
            "activation": ACTIVATIONS.get(activation, activation),
            "eps": first.norm1.eps,
        }
        fixed = numbers.keys() - sizes.keys() - {"eps"}
        return compare_vision(config, numbers, size, advice=dict.fromkeys(fixed, "take another `name`"))

    def adapt_state(self, state: dict[str, Tensor], prefix: str) -> None:
        """Fit a checkpoint to this encoder, in place; `load_strict` calls it.

        Blocks, norms and heads behind the features are dropped. A key bias that the checkpoint lacks is zero. The
        position table of a checkpoint of `position_size` is resized.
        """
        model = f"{prefix}model."
        names = set(self.model.state_dict())
        for name in [name for name in state if name.startswith(model)]:
            inner = name.removeprefix(model)
            if inner not in names and (inner in self.pruned or inner.startswith(HEADS)):
                del state[name]
        for name in names:
            queries = f"{model}{name.removesuffix('k_bias')}q_bias"
            if name.endswith("k_bias") and f"{model}{name}" not in state and queries in state:
                state[f"{model}{name}"] = torch.zeros_like(state[queries])
        table = state.get(f"{model}pos_embed")
        if table is None or self.position_size is None:
            return
        rows, columns = self.token_grid((self.position_size, self.position_size))
        first = table.shape[1] - rows * columns
        if first == self._embedded_prefix():
            patches = resize_grid(table[0, first:], self.grid)[None]
            state[f"{model}pos_embed"] = torch.cat([table[:, :first], patches], dim=1)

    def restore_buffers(self) -> None:
        """Recompute timm's tables of angles; needed after a build on the meta device."""
        device = next(self.model.parameters()).device
        for part in self.model.modules():
            stranded = {name: buffer for name, buffer in part.named_buffers(recurse=False) if buffer.is_meta}
            for name, buffer in stranded.items():
                part.register_buffer(name, torch.empty_like(buffer, device=device), persistent=False)
            if stranded:
                part.init_non_persistent_buffers()

    def forward(self, pixels: Tensor | Sequence[Tensor]) -> Tensor:
        """[V, 3, H, W] normalised pixels -> [V, N, D] patch features, row-major ([V, 1 + N, D] with the class token).

        With `any_size`, several groups of views, [V_g, 3, H_g, W_g] each, are encoded in one call. The output is then
        padded to the longest view; the valid patches of a view come first.

        Args:
            pixels: one group of views, or, with `any_size`, a sequence of groups.
        Raises:
            UserError: a view has another size than `image_size`, and `any_size` is False.
        """
        groups = [pixels] if isinstance(pixels, Tensor) else list(pixels)
        for group in groups:
            grid = self.token_grid(tuple(group.shape[-2:]))
            if grid != self.grid and not self.any_size:
                raise UserError(
                    f"TimmEncoder {self.name}: built for views of {self.image_size} x {self.image_size} pixels, got "
                    f"{group.shape[-2]} x {group.shape[-1]}. Set `image_size` of the vision encoder to the size that "
                    "the tiling makes."
                )
        return self.model(groups) if self.any_size else self.model(torch.cat(groups))

    def _run(self, pixels: Tensor) -> Tensor:
        """Run timm's own forward on views of `image_size`."""
        model = self.model
        if not isinstance(model, (Eva, VisionTransformer)):
            indices = list(range(self.index + 1)) if self.pyramid else [self.index]
            maps = model.forward_intermediates(pixels, indices=indices, norm=self.norm, intermediates_only=True)
            if self.pyramid:
                size = maps[0].shape[-2:]
                rest = [F.interpolate(x.float(), size, mode="bilinear").to(x.dtype) for x in maps[1:]]
                maps = [torch.cat([maps[0], *rest], dim=1)]
            return maps[0].flatten(2).transpose(1, 2)  # [V, D, rows, columns] -> [V, N, D]
        outputs: Any = model.forward_intermediates(
            pixels,
            indices=[self.index],
            return_prefix_tokens=True,
            norm=self.norm,
            output_fmt="NLC",
            intermediates_only=True,
        )
        if not self.prefix_tokens:
            return outputs[0]
        patches, prefix = outputs[0]
        return torch.cat([prefix[:, :1], patches], dim=1) if self.returns_class_token else patches

    def _run_padded(self, groups: Sequence[Tensor]) -> Tensor:
        """Run the model on views of several shapes at once; keys of padding are masked.

        The patches are embedded in one call: under ZeRO-3 every rank must make the same calls, whatever its views.
        """
        model, embed = self.model, self.model.patch_embed
        grids = [self.token_grid(tuple(group.shape[-2:])) for group in groups]
        lengths = [rows * columns for rows, columns in grids]
        longest = max(lengths)
        patch = self.patch_grid.patch
        strips = [
            F.pad(as_strip(group, patch), (0, (longest - length) * patch))
            for group, length in zip(groups, lengths, strict=True)
        ]
        x = embed.norm(embed.proj(torch.cat(strips)).flatten(2).transpose(1, 2))  # [V, N, D]
        views = [len(group) for group in groups]
        prefix = [token for token in (model.cls_token, model.reg_token) if token is not None]
        if model.pos_embed is not None:
            first = self._embedded_prefix()
            table = model.pos_embed[0]
            x = x + _by_view([resize_grid(table[first:], grid) for grid in grids], views, longest)
            if first:
                prefix = [torch.cat(prefix, dim=1) + table[:first]]
        x = torch.cat([*(token.to(x.dtype).expand(len(x), -1, -1) for token in prefix), x], dim=1)  # [V, P, D]
        options: dict[str, Tensor] = {}
        if isinstance(model, Eva) and model.rope is not None:
            angles = [model.rope.get_embed(shape=list(grid)) for grid in grids]
            options["rope"] = _by_view(angles, views, longest)[:, None]  # [V, 1, N, angles]
        if min(lengths) < longest:
            valid = [torch.ones(length, 1, dtype=torch.bool, device=x.device) for length in lengths]
            mask = _by_view(valid, views, longest)[:, None, None, :, 0]  # [V, 1, 1, N]
            options["attn_mask"] = F.pad(mask, (self.prefix_tokens, 0), value=True)
        x = model.norm_pre(model.pos_drop(x))
        for block in model.blocks:
            x = block(x, **options)
        x = model.norm(x) if self.norm else x
        patches = x[:, self.prefix_tokens :]
        return torch.cat([x[:, :1], patches], dim=1) if self.returns_class_token else patches

    def _embedded_prefix(self) -> int:
        """Return the number of class and register tokens that have a row in the position table."""
        return 0 if self.model.no_embed_class else self.prefix_tokens


Constants = tuple[float, float, float]


def normalisation(name: str) -> tuple[Constants, Constants]:
    """Return the mean and standard deviation per channel of a model's pixels in [0, 1]; nothing is built.

    Args:
        name: timm's name of a model, with or without a tag of weights.
    Raises:
        UserError: timm has no such model, or no weights of this tag.
    """
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), n=8)
        raise UserError(f"TimmEncoder: timm has no model {name!r}; near names are {near}")
    try:
        config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{base}.*")]
        raise UserError(
            f"TimmEncoder: timm's {base} has no weights {tag!r}, only {', '.join(tags) or 'none'}"
        ) from error
    (mean, std) = ((float(red), float(green), float(blue)) for red, green, blue in (config.mean, config.std))
    return mean, std


def _create(name: str, image_size: int | None, drop_path: float, overrides: dict[str, Any]) -> nn.Module:
    """Build a model without weights.

    Raises:
        UserError: timm refuses an argument, or the model has no intermediate features.
    """
    try:
        size = {"img_size": image_size} if image_size and _takes_size(name) else {}
        model = timm.create_model(name, pretrained=False, drop_path_rate=drop_path, **size, **overrides)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"TimmEncoder: timm cannot build {name} of {image_size=} with {overrides}: {error}. Correct `overrides`"
        ) from error
    if not isinstance(model, HasStages):
        raise UserError(
            f"TimmEncoder: {type(model).__name__} of timm does not return features of its blocks. Use another model"
        )
    return model


@cache
def _takes_size(name: str) -> bool:
    """True if a model of timm is built for a size of its views. To see that, it is built once, without memory."""
    with torch.device("meta"):
        return "img_size" in inspect.signature(type(timm.create_model(name)).__init__).parameters


def _published_size(model: nn.Module, name: str) -> int:
    """Return the side of a model's views, pixels; for a model of any size, that of its data config."""
    if isinstance(model, (Eva, VisionTransformer)) and model.patch_embed.img_size is not None:
        return model.patch_embed.img_size[0]
    return timm.get_pretrained_cfg(name).input_size[-1]


def _as_layers(model: nn.Module) -> dict[str, int]:
    """Make the blocks layers of `prepare_layers`, in place, and return the depth of each parameter.

    A block gets a subclass of its class, so parameter names stay timm's.
    """
    lists = [part for name, part in model.named_modules() if name.rpartition(".")[2] == "blocks"]
    blocks = [block for part in lists for block in part.children()]
    for block in blocks:
        block.__class__ = _checkpointed(type(block))
    numbers = {id(p): number for number, block in enumerate(blocks, start=1) for p in block.parameters()}
    depths, depth = {}, 0
    for name, parameter in model.named_parameters():
        depth = depths[name] = numbers.get(id(parameter), depth)
    return depths


@cache
def _checkpointed(block: type[nn.Module]) -> type[nn.Module]:
    """Make the class of a block that transformers' activation checkpointing runs."""
    return type(block.__name__, (GradientCheckpointingLayer, block), {"forward": block.forward})


def _by_view(tables: Sequence[Tensor], views: Sequence[int], longest: int) -> Tensor:
    """Pad the tables of all groups to [longest, ...] and repeat them for each view: [V, longest, ...]."""
    padded = [F.pad(table, (0, 0, 0, longest - len(table))) for table in tables]
    return torch.cat([table.expand(count, -1, -1) for table, count in zip(padded, views, strict=True)])
