"""The vision transformer of timm with a class token and a last norm, as in DeiT and BLIP."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lit_mm.errors import UserError
from lit_mm.tiling.grids import PatchGrid
from lit_mm.vision.position import resize_position_table
from lit_mm.vision.protocol import VisionEncoder

# V views, N patches, D width, P = N + 1 positions (class token first)


class ResizingTransformer(VisionTransformer):
    """timm's VisionTransformer with positions that are resized as in BLIP; timm's own resizing has another kernel."""

    def _pos_embed(self, x: Tensor) -> Tensor:
        """[V, rows, columns, D] patch embeddings -> [V, P, D] with class token and positions."""
        table = resize_position_table(self.pos_embed[0], tuple(x.shape[1:3]))
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x.flatten(1, 2)], dim=1)
        return self.pos_drop(x + table)


class TimmViT(nn.Module, VisionEncoder):
    """timm's VisionTransformer. Its features are the normed output of the last block, class token first.

    Args:
        image_size: side of a view, pixels. The position table has one row per patch of such a view.
        patch: side of a patch, pixels.
        width: D. ViT-B: 768, ViT-L: 1024.
        layers: number of blocks. ViT-B: 12, ViT-L: 24.
        heads: number of attention heads. ViT-B: 12, ViT-L: 16.
        mlp_ratio: feed-forward width / D.
        drop_path: probability that a branch of the last block is skipped for a view while the encoder learns. The
            probability rises linearly from 0 at the first block. BLIP: 0 for ViT-B, 0.1 for ViT-L.
        eps: epsilon of the layer norms. BLIP: 1e-6; Hugging Face's BLIP configuration defaults to 1e-5.
        position_size: image size of the checkpoint, pixels. Its position table is resized bicubically while it is
            loaded. None: the checkpoint must have the table of `image_size`.
        any_view: True accepts square and oblong views of any size. The position table stays that of `image_size`, and
            every forward resizes it bicubically, so it learns at whichever size a stage trains on.
        activation_checkpointing: "full" recomputes each block in the backward pass; "none" keeps its activations.
        weights: reference of the checkpoint that `load_pretrained` loads later; the constructor reads nothing.
    Raises:
        UserError: sizes do not divide.
    Source: arXiv:2010.11929; models/vit.py of github.com/salesforce/BLIP, a copy of timm's.
    """

    returns_class_token = True

    def __init__(
        self,
        image_size: int = 224,
        patch: int = 16,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        eps: float = 1e-6,
        position_size: int | None = None,
        any_view: bool = False,
        activation_checkpointing: Literal["none", "full"] = "none",
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"TimmViT: `heads` must divide `width`, got {width=}, {heads=}")
        self.image_size, self.width, self.heads, self.num_layers = image_size, width, heads, layers
        self.position_size, self.any_view, self.weights = position_size, any_view, weights
        self.patch_grid = PatchGrid(patch, "TimmViT")
        self.grid = self.token_grid((image_size, image_size))
        if position_size is not None:
            self.token_grid((position_size, position_size))  # it must divide, too
        self.vit = (ResizingTransformer if any_view else VisionTransformer)(
            img_size=image_size,
            patch_size=patch,
            num_classes=0,
            global_pool="",
            embed_dim=width,
            depth=layers,
            num_heads=heads,
            mlp_ratio=mlp_ratio,
            drop_path_rate=drop_path,
            norm_layer=partial(nn.LayerNorm, eps=eps),
            dynamic_img_size=any_view,
        )
        self.vit.set_grad_checkpointing(activation_checkpointing == "full")

    def token_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of a view, pixels -> (rows, columns) of patches.

        Raises:
            UserError: a side is not a positive multiple of the patch.
        """
        return self.patch_grid(size)

    def layer_of(self, parameter_name: str) -> int:
        """Depth of a parameter, for layer-wise learning rates: 0 = embeddings, i + 1 = block i, the last = norm."""
        _, piece, *rest = parameter_name.split(".")
        if piece == "norm":
            return self.num_layers
        return int(rest[0]) + 1 if piece == "blocks" else 0

    def adapt_state(self, state: dict[str, Tensor], prefix: str) -> None:
        """Resize the position table of a checkpoint of `position_size`, in place; `load_strict` calls it."""
        name, size = f"{prefix}vit.pos_embed", self.position_size
        if size is None or name not in state:
            return
        rows, columns = self.token_grid((size, size))
        if state[name].shape[1] == 1 + rows * columns:
            state[name] = resize_position_table(state[name][0], self.grid)[None]

    def forward(self, pixels: Tensor) -> Tensor:
        """[V, 3, H, W] normalised pixels -> [V, P, D] features, class token first, patches row-major.

        Raises:
            UserError: a view has another size than `image_size`, and `any_view` is False.
        """
        if not self.any_view and tuple(pixels.shape[-2:]) != (self.image_size, self.image_size):
            raise UserError(
                f"TimmViT: built for views of {self.image_size} x {self.image_size} pixels, got {pixels.shape[-2]} x "
                f"{pixels.shape[-1]}. Set `image_size` of the vision encoder to the size that the tiling makes, "
                "or set `any_view: true`"
            )
        return self.vit(pixels)
