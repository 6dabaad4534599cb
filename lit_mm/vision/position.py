"""Learnt position tables at other image sizes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lit_mm.errors import UserError
from lit_mm.layers.position import resize_grid


def resize_position_table(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize the patch rows of a position table bicubically (`align_corners` False); the class token's row stays.

    Args:
        table: [1 + N, D], class token first, then a square grid of N patches, row-major.
        grid: (rows, columns) of patches after resizing.
    Returns:
        [1 + rows * columns, D], computed in fp32, in the table's dtype; the table itself if its grid is `grid` already.
    Raises:
        UserError: N is not a square.
    Source: `resize_pos` of XComposer2's build_mlp.py (24 x 24 to 16 x 16 or 35 x 35).
    """
    patches = len(table) - 1
    side = math.isqrt(max(patches, 0))
    if side**2 != patches or not patches:
        raise UserError(
            f"resizing a position table needs 1 class token and a square grid, got {len(table)} rows (1 + {patches})"
        )
    if grid == (side, side):
        return table
    return torch.cat([table[:1], resize_grid(table[1:], grid)])
