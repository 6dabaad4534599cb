"""Position tables of square grids: resizing of learnt tables, and the fixed sine-cosine table."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_mm.errors import UserError
from lit_mm.layers.autocast import without_autocast


def resize_grid(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize a square grid of vectors bicubically (`align_corners` False, no antialiasing).

    The function multiplies with two small matrices, because the backward of CUDA's bicubic kernel is not deterministic.

    Args:
        table: [N, D], a square grid of N positions, row-major.
        grid: (rows, columns) of positions after resizing.
    Returns:
        [rows * columns, D], computed in fp32, in the table's dtype; the table itself if its grid is `grid` already.
    Raises:
        UserError: N is not a square.
    Source: `get_abs_pos` of Qwen-VL's visual.py; `resize_pos` of XComposer2's build_mlp.py.
    """
    side = math.isqrt(len(table))
    if side**2 != len(table) or not side:
        raise UserError(f"resizing a position table needs a square grid of positions, got {len(table)}")
    if grid == (side, side):
        return table
    with without_autocast(table):
        rows, columns = (bicubic_weights(side, length).to(table.device, non_blocking=True) for length in grid)
        image = table.float().unflatten(0, (side, side))
        image = torch.einsum("ri,ijd->rjd", rows, image)
        image = torch.einsum("cj,rjd->rcd", columns, image)
    return image.flatten(0, 1).to(table.dtype)


def bicubic_weights(source: int, target: int) -> Tensor:
    """Return the weights of `source` points in each of `target` points along one axis: [target, source] fp32."""
    eye = torch.eye(source, device="cpu").view(1, 1, source, source)
    return F.interpolate(eye, size=(target, source), mode="bicubic", align_corners=False)[0, 0]


def sincos_frequencies(width: int) -> Tensor:
    """Return the frequencies of a 2-D table: [width / 4] fp64, a geometric sequence from 1 down towards 1 / 10000."""
    quarter = width // 4
    return 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)


def sincos_table(width: int, side: int) -> Tensor:
    """Build the fixed 2-D sine-cosine table of a square grid.

    The first half of the channels encodes the column, the second half the row; each half is sines, then cosines.

    Args:
        width: D, a multiple of 4.
        side: S, number of rows and of columns.
    Returns:
        [S * S, D] fp32, row-major.
    Raises:
        UserError: the width is not a multiple of 4.
    Source: `get_2d_sincos_pos_embed` of MAE and of Qwen-VL's visual.py.
    """
    if width % 4 or width < 4:
        raise UserError(f"a 2-D sine-cosine table needs a width that is a multiple of 4, got {width}")
    angles = torch.arange(side, dtype=torch.float64)[:, None] * sincos_frequencies(width)  # [S, D / 4]
    axis = torch.cat([angles.sin(), angles.cos()], dim=1).float()  # [S, D / 2]
    columns, rows = axis.expand(side, -1, -1), axis[:, None].expand(-1, side, -1)  # [row, column, D / 2]
    return torch.cat([columns, rows], dim=-1).flatten(0, 1)
