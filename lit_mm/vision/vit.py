"""The CLIP vision transformer (OpenAI layout): pre-norm blocks, learnt positions, with or without a class token."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from lit_mm.errors import UserError
from lit_mm.layers.activations import Checkpointing, prepare_layers
from lit_mm.layers.attention import attention_by_length
from lit_mm.layers.position import resize_grid
from lit_mm.tiling.grids import PatchGrid
from lit_mm.vision.position import resize_position_table
from lit_mm.vision.protocol import VisionEncoder
from lit_mm.weights.agreement import Difference
from lit_mm.weights.config_tables import VIT_KIND, compare_vision, vit_arguments

# V views, N patches, D width, P positions: N + 1, the class token first, or N without one; H heads


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x): OpenAI's CLIP was trained with it, and differs with the exact GELU."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class Block(GradientCheckpointingLayer):
    """A pre-norm transformer block. One linear computes q, k and v; its rows are q, then k, then v."""

    def __init__(self, width: int, heads: int, ffn_width: int, activation: str, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.activation = ACTIVATIONS[activation]
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.fc1 = nn.Linear(width, ffn_width)
        self.fc2 = nn.Linear(ffn_width, width)

    def forward(self, x: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """[V, P, D] -> [V, P, D].

        Args:
            lengths: number of positions of each view, which precede its padding; None: all views have P.
        """
        x = x + self.out(self.attend(self.qkv(self.norm1(x)), lengths))
        return x + self.feed_forward(x)

    def attend(self, qkv: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Packed q, k, v [V, P, 3 D] -> outputs of all heads, side by side, [V, P, D]."""
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [V, H, P, D / H]
        return attention_by_length(q, k, v, lengths, lengths).transpose(1, 2).flatten(2)

    def feed_forward(self, x: Tensor) -> Tensor:
        """[V, P, D] -> [V, P, D], with the norm and without the residual."""
        return self.fc2(self.activation(self.fc1(self.norm2(x))))


class ViT(nn.Module, VisionEncoder):
    """The CLIP vision transformer. Its features are the output of a block, before the post layer-norm.

    The post layer-norm and the blocks behind the features are not built, because no gradient would reach them.
    XComposer2's release replaces the norm by an identity when the ViT learns; LLaVA's release loads and runs the last
    block although nothing reads it.

    Args:
        image_size: side of a view, pixels. The position table has one row per patch of such a view.
        patch: side of a patch, pixels.
        width: D.
        layers: number of blocks of the published transformer.
        heads: number of attention heads.
        select_layer: index of the block whose output is returned, as in transformers' hidden_states: -1 the last, -2
            the one before (LLaVA).
        mlp_ratio: feed-forward width / D.
        ffn_width: overrides `mlp_ratio`.
        activation: "quick_gelu" (OpenAI's weights) or "gelu".
        drop_cls: True leaves the class token out of the output.
        eps: epsilon of the layer norms.
        position_size: image size of the checkpoint, pixels. Its position table is resized bicubically while it is
            loaded. None: the checkpoint must have the table of `image_size`.
        weights: reference of the checkpoint that `load_pretrained` loads later; the constructor reads nothing.
        activation_checkpointing: what each block keeps for the backward pass: "none" its activations, "full" its
            inputs, "selective" (with `compile`) its inputs and its products.
        compile: compile the blocks by `torch.compile` while they train; where views of several shapes are encoded
            together, the blocks run as they are.
        class_token: False builds no class token, as in Qwen-VL's OpenCLIP bigG, and drops that of a checkpoint.
        any_size: True accepts views of any size. The position table stays that of `image_size`; every forward resizes
            it bicubically to the view's grid, so it learns at whichever size a stage trains on. With a connector of
            `any_grid` (LLaVA-UHD's), the views of a batch may differ in shape, and one call encodes all of them.
    Raises:
        UserError: sizes do not divide, the activation is unknown, or `select_layer` is no layer.
    Source: arXiv:2103.00020; openai/CLIP, class VisionTransformer. `class_token` and `any_size`: Qwen-VL's visual.py.
    """

    def __init__(
        self,
        image_size: int,
        patch: int,
        width: int,
        layers: int,
        heads: int,
        mlp_ratio: float = 4.0,
        ffn_width: int | None = None,
        activation: str = "quick_gelu",
        drop_cls: bool = True,
        eps: float = 1e-5,
        position_size: int | None = None,
        weights: str | None = None,
        activation_checkpointing: Checkpointing = "none",
        select_layer: int = -1,
        class_token: bool = True,
        any_size: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if not -layers <= select_layer <= -1:
            raise UserError(f"ViT: `select_layer` is -1 (the last of {layers} layers) to {-layers}, got {select_layer}")
        if width % heads:
            raise UserError(f"ViT: `heads` must divide `width`, got {width=}, {heads=}")
        if activation not in ACTIVATIONS:
            raise UserError(f"ViT: `activation` is one of {sorted(ACTIVATIONS)}, got {activation!r}")
        self.image_size, self.patch, self.width = image_size, patch, width
        self.published_layers, self.num_layers = layers, layers + select_layer + 1
        self.drop_cls, self.position_size, self.weights = drop_cls, position_size, weights
        self.returns_class_token = class_token and not drop_cls
        self.activation_checkpointing, self.compiled = activation_checkpointing, compile
        self.any_size = any_size
        self.heads, self.activation, self.eps = heads, activation, eps
        self.patch_grid = PatchGrid(patch, "ViT")
        self.grid = self.token_grid((image_size, image_size))
        if position_size is not None:
            self.token_grid((position_size, position_size))  # it must divide, too
        self.patches = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.cls = nn.Parameter(torch.randn(width) * width**-0.5) if class_token else None
        length = int(class_token) + self.grid[0] * self.grid[1]
        self.positions = nn.Parameter(torch.randn(length, width) * width**-0.5)
        self.pre_norm = nn.LayerNorm(width, eps=eps)
        self.ffn_width = round(width * mlp_ratio) if ffn_width is None else ffn_width
        self.blocks = nn.ModuleList(
            Block(width, heads, self.ffn_width, activation, eps) for _ in range(self.num_layers)
        )
        prepare_layers(self, activation_checkpointing, compile)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights by OpenAI's scheme: the more layers, the narrower are linears that add to the residual."""
        residual = self.width**-0.5 * (2 * self.num_layers) ** -0.5
        for block in self.blocks:
            nn.init.normal_(block.qkv.weight, std=self.width**-0.5)
            nn.init.normal_(block.out.weight, std=residual)
            nn.init.normal_(block.fc1.weight, std=(2 * self.width) ** -0.5)
            nn.init.normal_(block.fc2.weight, std=residual)
            for linear in (block.qkv, block.out, block.fc1, block.fc2):
                nn.init.zeros_(linear.bias)

    def token_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of a view, pixels -> (rows, columns) of patches.

        Raises:
            UserError: a side is not a positive multiple of the patch.
        """
        return self.patch_grid(size)

    def layer_of(self, parameter_name: str) -> int:
        """Depth of a parameter, for layer-wise learning rates: 0 = embeddings and pre-norm, i + 1 = block i."""
        head, _, rest = parameter_name.partition(".")
        return int(rest.split(".", 1)[0]) + 1 if head == "blocks" else 0

    @classmethod
    def published_arguments(cls, config: dict[str, Any], recipe_arguments: Collection[str]) -> dict[str, Any]:
        """See `lit_mm.weights.agreement.ReadsArguments`."""
        arguments = vit_arguments(config)
        if "mlp_ratio" in recipe_arguments:
            arguments.pop("ffn_width", None)
        return arguments

    def compare_config(self, config: dict[str, Any]) -> list[Difference]:
        """Compare the part with the config.json of its weights, see `lit_mm.weights.agreement`."""
        size = "image_size" if self.position_size is None else "position_size"
        numbers = {
            "model_type": VIT_KIND,
            size: self.position_size or self.image_size,
            "patch": self.patch,
            "width": self.width,
            "layers": self.published_layers,
            "heads": self.heads,
            "ffn_width": self.ffn_width,
            "activation": self.activation,
            "eps": self.eps,
        }
        return compare_vision(config, numbers, size)

    def adapt_state(self, state: dict[str, Tensor], prefix: str) -> None:
        """Fit a checkpoint to this encoder, in place; `load_strict` calls it.

        Blocks behind the features are dropped, and so is a class token that this encoder does not have. The position
        table of a checkpoint of `position_size` is resized.
        """
        unused = tuple(f"{prefix}blocks.{block}." for block in range(self.num_layers, self.published_layers))
        for name in [name for name in state if name.startswith(unused)]:
            del state[name]
        name, size = f"{prefix}positions", self.position_size
        if self.cls is None and state.pop(f"{prefix}cls", None) is not None:
            state[name] = state[name][1:]
        if size is None or name not in state:
            return
        rows, columns = self.token_grid((size, size))
        if len(state[name]) == (self.cls is not None) + rows * columns:
            state[name] = self._resized(state[name], self.grid)

    def _resized(self, table: Tensor, grid: tuple[int, int]) -> Tensor:
        return resize_grid(table, grid) if self.cls is None else resize_position_table(table, grid)

    def forward(self, pixels: Tensor | Sequence[Tensor], tiles: Tensor | None = None) -> Tensor:
        """[V, 3, H, W] normalised pixels -> [V, N, D] patch features, row-major ([V, P, D] with `drop_cls: false`).

        Several groups of views, [V_g, 3, H_g, W_g] each, are encoded in one call. The output is then padded to the
        longest view; the valid patches of a view come first.

        Args:
            pixels: one group of views, or a sequence of groups.
            tiles: [V] tile numbers, see `Views`, for an encoder that `reads_tiles`; None treats every view as a global
                view.
        Raises:
            UserError: a view has another size than `image_size`, and `any_size` is False.
        """
        if isinstance(pixels, Tensor):
            lengths = None
            x = self.patches(pixels).flatten(2).transpose(1, 2)  # [V, N, D]
            table = self._resized(self.positions, self._grid(pixels))
        else:
            x, table, lengths = self._padded(pixels)
        if self.cls is not None:
            x = torch.cat([self.cls.to(x.dtype).expand(len(x), 1, -1), x], dim=1)  # [V, P, D]
        x = self.pre_norm(x + table)
        extra = () if tiles is None else (tiles,)
        for block in self.blocks:
            x = block(x, lengths, *extra)
        return x[:, 1:] if self.drop_cls and self.cls is not None else x

    def _grid(self, pixels: Tensor) -> tuple[int, int]:
        grid = self.token_grid(tuple(pixels.shape[-2:]))
        if grid != self.grid and not self.any_size:
            raise UserError(
                f"ViT: built for views of {self.image_size} x {self.image_size} pixels, got {pixels.shape[-2]} x "
                f"{pixels.shape[-1]}. Set `image_size` of the vision encoder to the size that the tiling makes."
            )
        return grid

    def _padded(self, groups: Sequence[Tensor]) -> tuple[Tensor, Tensor, tuple[int, ...] | None]:
        """Embed all groups: patches [V, N, D] and position tables [V, P, D], padded, and `lengths` of `Block`.

        `patches` is called once for all groups: under ZeRO-3 every rank must make the same calls, whatever its views.
        """
        grids = [self._grid(group) for group in groups]
        lengths = [rows * columns for rows, columns in grids]
        longest = max(lengths)
        strips, tables = [], []
        for group, grid, length in zip(groups, grids, lengths, strict=True):
            strips.append(F.pad(as_strip(group, self.patch), (0, (longest - length) * self.patch)))
            table = F.pad(self._resized(self.positions, grid), (0, 0, 0, longest - length))
            tables.append(table.expand(len(group), -1, -1))
        x = self.patches(torch.cat(strips)).flatten(2).transpose(1, 2)  # [V, N, D]
        if min(lengths) == longest:
            return x, torch.cat(tables), None
        first = int(self.cls is not None)
        by_view = tuple(first + length for group, length in zip(groups, lengths, strict=True) for _ in group)
        return x, torch.cat(tables), by_view


def as_strip(pixels: Tensor, patch: int) -> Tensor:
    """[V, 3, rows * patch, columns * patch] -> [V, 3, patch, rows * columns * patch]: patches in one row, row-major."""
    patches = pixels.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # [V, 3, rows, patch, columns, patch]
    return patches.permute(0, 1, 3, 2, 4, 5).flatten(3)
