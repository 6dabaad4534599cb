"""VILA-1.5's projector: 2 x 2 neighbouring patches become one visual token."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_mm.connectors.protocol import Connector
from lit_mm.errors import UserError
from lit_mm.tiling.grids import HalvedColumns


# V views, S side of the patch grid, N = S^2 patches, D vision width, E language width, T = ceil(S / 2)
class DownsampleMLP(nn.Module, Connector):
    """Concatenates the channels of 2 x 2 patches, then layer norm - linear - exact GELU - linear.

    The patches are concatenated in the order top left, top right, bottom left, bottom right; an odd side is padded with
    zeros at the bottom and on the right. The output is ordered column by column (the first column of blocks from top to
    bottom, then the next): the release transposes the grid, and its weights expect that order.

    Args:
        vision_width: D.
        language_width: E.
    Source: github.com/NVlabs/VILA branch vila1.5 6b941da, base_projector.py, `mlp_downsample`.
    """

    grids, order = "square", "columns"  # see lit_mm.combination.legal

    def __init__(self, vision_width: int, language_width: int) -> None:
        super().__init__()
        self.language_width = language_width
        self.grid_rule = HalvedColumns()
        self.mlp = nn.Sequential(
            nn.LayerNorm(4 * vision_width),
            nn.Linear(4 * vision_width, language_width),
            nn.GELU(),
            nn.Linear(language_width, language_width),
        )

    def token_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of patches -> half as many rows and columns of visual tokens, rounded up."""
        return self.grid_rule(grid)

    def learned(self) -> Tensor:
        """[0, E]: no newline, no separator."""
        return torch.zeros(0, self.language_width)  # asking a weight for its kind would gather it under ZeRO-3

    def forward(self, x: Tensor) -> Tensor:
        """[V, N, D] patch features -> [V, T * T, E] visual tokens.

        Raises:
            UserError: the patches are not a square grid.
        """
        return self.mlp(join_patches(x))


def join_patches(x: Tensor) -> Tensor:
    """[V, N, D] -> [V, T * T, 4 D], column by column.

    Raises:
        UserError: N is not a square.
    """
    side = math.isqrt(x.shape[1])
    if side**2 != x.shape[1]:
        raise UserError(
            f"DownsampleMLP needs a square grid of patches, got {x.shape[1]}. Did the vision encoder keep its class "
            "token? Set `drop_cls: true`"
        )
    x = x.unflatten(1, (side, side))  # [V, S, S, D]
    x = F.pad(x, (0, 0, 0, side % 2, 0, side % 2))  # [V, 2 T, 2 T, D]
    half = x.shape[1] // 2
    x = x.unflatten(1, (half, 2)).unflatten(3, (half, 2))  # [V, T, 2, T, 2, D]
    return x.permute(0, 3, 1, 2, 4, 5).flatten(3).flatten(1, 2)  # [V, column, row, 4 D] -> [V, T * T, 4 D]
