"""AnyRes, the tiling of LLaVA-NeXT: a view of the whole, then the grid of tiles that keeps most of the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lit_mm.errors import UserError
from lit_mm.tiling.plan import Size, TilePlan, Tiling, View, require_pixels, tiles_of

Rule = Literal["official", "hf"]
GRIDS = ((2, 1), (1, 2), (2, 2), (1, 3), (3, 1))  # released configs; the blog's 1 x 4 and 4 x 1 are in none of them


def plan_anyres(
    height: int, width: int, *, tile: int = 336, grids: Sequence[tuple[int, int]] = GRIDS, rule: Rule = "official"
) -> TilePlan:
    """Shrink or enlarge the image into the best grid of tiles; a stretched view of the whole comes first.

    The best grid keeps the most pixels of the image (enlarging earns nothing). On a tie the grid with the least padding
    wins, on a further tie the first in `grids`. So an image of 300 x 300 gets two rows of one tile.

    Args:
        height, width: size of the source image, pixels.
        tile: side of a tile and of the view of the whole, pixels.
        grids: candidate (rows, columns), in the order of the released list read as (width, height) pairs.
        rule: "official" follows the authors' code. "hf" is for checkpoints of Hugging Face transformers, which
            read the same list as (height, width) pairs, so ties go to the transposed grid. `unpad` needs the same rule.
    Raises:
        UserError: the image or `grids` is empty.
    Source: LLaVA-NeXT, `select_best_resolution` and `resize_and_pad_image`, which pad with black.
    """
    require_pixels("plan_anyres", height, width)
    if not grids:
        raise UserError("plan_anyres needs at least one grid of tiles in `grids`, got none")

    def merit(grid: tuple[int, int]) -> tuple[int, int]:
        high, wide = grid[0] * tile, grid[1] * tile
        scale = min(wide / width, high / height)
        pixels = min(int(width * scale) * int(height * scale), width * height)
        return pixels, pixels - high * wide

    if rule == "hf":
        grids = [(columns, rows) for rows, columns in grids]
    rows, columns = max(grids, key=merit)  # the first of equals
    resize = _fit(height, width, rows * tile, columns * tile)
    views = (View.whole((tile, tile)), *tiles_of(resize, (rows, columns), (tile, tile)))
    return TilePlan((height, width), (rows, columns), views, thumbnail="first")


def _fit(height: int, width: int, high: int, wide: int) -> Size:
    """Compute the largest size of this aspect ratio inside high x wide; the free side is rounded up."""
    across, down = wide / width, high / height
    if across < down:
        return min(math.ceil(height * across), high), wide
    return high, min(math.ceil(width * down), wide)


def unpad(image: Size, cells: Size, *, rule: Rule = "official") -> tuple[int, int, int, int]:
    """Find the cells of the map of all tiles that show the image and not its padding.

    The cells are computed from the aspect ratio, so they do not exactly match the padding in pixels. An odd remainder
    leaves one row or column of padding. Very long images lose all cells: 1 x 1000 keeps no column, 1000 x 1 no row.

    Args:
        image: (height, width) of the source image, pixels.
        cells: (rows, columns) of visual tokens that the grid of tiles makes.
        rule: "official" truncates the scaled side; "hf" first rounds it to 7 decimals, which matters where the division
            ends just below a whole number (198 x 176 pixels on 48 x 24 cells: 26 rows or 28).
    Returns:
        (top, left, rows, columns), cells.
    Source: LLaVA-NeXT, `unpad_image`.
    """
    (height, width), (rows, columns) = image, cells

    def whole(cells: float) -> int:
        return int(cells if rule == "official" else round(cells, 7))

    if width / height > columns / rows:
        top = (rows - whole(height * (columns / width))) // 2
        return top, 0, rows - 2 * top, columns
    left = (columns - whole(width * (rows / height))) // 2
    return 0, left, rows, columns - 2 * left


@dataclass(frozen=True)
class AnyRes(Tiling):
    """Gives a view of the whole, then the grid of tiles that keeps most of the image. See `plan_anyres`.

    Args:
        tile: side of a tile and of the view of the whole, pixels.
        grids: candidate (rows, columns), in order of preference.
        rule: "official" or "hf"; the layout `BaseThenUnpaddedRows` takes the same rule.
    """

    tile: int = 336
    grids: tuple[tuple[int, int], ...] = GRIDS
    rule: Rule = "official"

    def __call__(self, height: int, width: int) -> TilePlan:
        return plan_anyres(height, width, tile=self.tile, grids=self.grids, rule=self.rule)
