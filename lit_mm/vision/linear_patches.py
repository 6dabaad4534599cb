"""Linear patches: a vision encoder without transformer, one linear that projects the pixels of each patch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_mm.layers.start import start_at
from lit_mm.tiling.grids import PatchGrid
from lit_mm.vision.protocol import VisionEncoder
from lit_mm.weights.agreement import Difference
from lit_mm.weights.config_tables import compare_patches

# V views, V_g views of one shape, N patches, P side of a patch, D width


class LinearPatches(nn.Module, VisionEncoder):
    """Projects the pixels of each patch by one linear with bias. There are no positions and no attention.

    Views of any size may share a batch: the patches of all views pass through the linear in one call.

    Args:
        patch: P, side of a patch, pixels.
        width: D.
        start: standard deviation of the features at the start for pixels of variance 1; None: torch's initial weights.
        weights: reference of the checkpoint that `load_pretrained` loads later; the constructor reads nothing.
    Source: Fuyu-8B (Adept, 17 October 2023); transformers' FuyuModel, `vision_embed_tokens`.
    """

    any_size = True
    mean = std = (0.5, 0.5, 0.5)

    def __init__(self, patch: int, width: int, start: float | None = None, weights: str | None = None) -> None:
        super().__init__()
        self.patch, self.width, self.weights = patch, width, weights
        self.patch_grid = PatchGrid(patch, "LinearPatches")
        self.projection = nn.Linear(3 * patch * patch, width)
        if start is not None:
            start_at(self.projection, start)

    def compare_config(self, config: dict[str, Any]) -> list[Difference]:
        """Compare the part with the config.json of its weights, see `lit_mm.weights.agreement`."""
        return compare_patches(config, {"patch": self.patch, "width": self.width, "channels": 3})

    def token_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of a view, pixels -> (rows, columns) of patches.

        Raises:
            UserError: a side is not a positive multiple of the patch.
        """
        return self.patch_grid(size)

    def forward(self, pixels: Tensor | Sequence[Tensor]) -> Tensor:
        """[V, 3, H, W] normalised pixels -> [V, N, D] patch features, row-major.

        Several groups of views, [V_g, 3, H_g, W_g] each, are projected in one call. The output is then padded with
        zeros to the longest view; the valid patches of a view come first.

        Raises:
            UserError: a side of a view is not a positive multiple of the patch.
        """
        groups = [pixels] if isinstance(pixels, Tensor) else list(pixels)
        for group in groups:
            self.token_grid(tuple(group.shape[-2:]))
        patches = [flat_patches(group, self.patch) for group in groups]  # each [V_g, N_g, 3 * P * P]
        features = self.projection(torch.cat([of_group.flatten(0, 1) for of_group in patches]))
        longest = max(of_group.shape[1] for of_group in patches)
        pieces = features.split([of_group.shape[0] * of_group.shape[1] for of_group in patches])
        return torch.cat(
            [
                F.pad(piece.unflatten(0, of_group.shape[:2]), (0, 0, 0, longest - of_group.shape[1]))
                for piece, of_group in zip(pieces, patches, strict=True)
            ]
        )


def flat_patches(pixels: Tensor, patch: int) -> Tensor:
    """Cut views into patches: [V, 3, rows * patch, columns * patch] -> [V, rows * columns, patch * patch * 3].

    Patches are row-major, and so are the pixels of a patch; the channel changes fastest.
    """
    cut = pixels.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # [V, 3, rows, P, columns, P]
    return cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
