"""The tiling of LLaVA-UHD: slices of variable size whose shape follows the image, then an overview, without padding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from lit_mm.tiling.plan import Size, TilePlan, Tiling, View, require_pixels, tiles_of


def plan_uhd(height: int, width: int, *, max_slices: int = 7, size: int = 336, patch: int = 14) -> TilePlan:
    """Cut the image into slices of about the area that the vision encoder was trained on; an overview comes last.

    The area gives the ideal number of slices. Of all grids with that number, one more or one less, the grid whose shape
    is nearest to the image's is chosen. An image of no more than one slice has only its overview. Views are not square:
    480 x 640 becomes 2 x 2 slices of 280 x 378 and an overview of 280 x 378.

    Args:
        height, width: source image, pixels.
        max_slices: most slices in a grid.
        size: side of the square whose area every view keeps, pixels.
        patch: sides are multiples of this, pixels.
    Raises:
        UserError: the image is empty.
    Source: LLaVA-UHD, branch v1, `slice_image_minicpm`, the code of the ECCV 2024 version (144 tokens a view).
    """
    require_pixels("plan_uhd", height, width)
    overview = _fit(height, width, size, patch)
    count = min(math.ceil(height * width / size**2), max_slices)
    if count <= 1:
        return TilePlan((height, width), (0, 0), (View.whole(overview),), thumbnail="last")
    rows, columns = _grid(height, width, [n for n in (count - 1, count, count + 1) if 1 < n <= max_slices])
    cell = _fit(_floor(height, rows) / rows, _floor(width, columns) / columns, size, patch)
    slices = tiles_of((cell[0] * rows, cell[1] * columns), (rows, columns), cell)
    return TilePlan((height, width), (rows, columns), (*slices, View.whole(overview)), thumbnail="last")


def plan_uhd_arxiv(height: int, width: int, *, max_slices: int = 6, size: int = 336, patch: int = 14) -> TilePlan:
    """Plan as the first version does: slices are cut from the image as it is, and each is shrunk to whole patches.

    Differs from `plan_uhd`: an image of up to two slices is never given fewer (so 1000 x 1 pixels are cut in two), the
    ideal count and not the grid is limited (so there may be `max_slices` + 1), and no view exceeds the patches of the
    square; a side of at most that many patches keeps very long images within bounds.

    Args:
        height, width: source image, pixels.
        max_slices: limit of the ideal count of slices.
        size: side of the square whose patches a view may have, pixels.
        patch: side of a patch, pixels.
    Raises:
        UserError: the image is empty.
    Source: arXiv:2403.11703v1 and the code of March 2024 (`slice_logic.py`; 64 tokens a view). Of that code only the
        partition is followed: its forward pass is known to be broken.
    """
    require_pixels("plan_uhd_arxiv", height, width)
    most = (size // patch) ** 2

    def fit(high: int, wide: int) -> Size:
        scale = math.sqrt(most * (patch / high) * (patch / wide))  # in this order: 337 x 337 gives 23 patches, not 24
        rows, columns = (max(min(math.floor(scale * side / patch), most), 1) for side in (high, wide))
        return rows * patch, columns * patch

    overview = View.whole(fit(height, width))
    count = min(math.ceil(height * width / size**2), max_slices)
    rows, columns = _grid(height, width, [count, count + 1] if count <= 2 else [count - 1, count, count + 1])
    if rows * columns == 1:
        return TilePlan((height, width), (0, 0), (overview,), thumbnail="last")
    cell = fit(height // rows, width // columns)
    tops = [row * height // rows for row in range(rows + 1)]
    lefts = [column * width // columns for column in range(columns + 1)]
    whole = (height, width)
    slices = (
        View(whole, whole, (0, 0), (top, left, bottom - top, right - left), cell)
        for top, bottom in pairwise(tops)
        for left, right in pairwise(lefts)
    )
    return TilePlan(whole, (rows, columns), (*slices, overview), thumbnail="last")


def _grid(height: int, width: int, counts: list[int]) -> tuple[int, int]:
    """(rows, columns), their product among `counts`, of the shape nearest to the image's; the first of equals.

    The logarithms are taken as in the release: which of two transposed grids a square image gets (2 x 3) hangs on their
    last bit.
    """
    grids = [(n // columns, columns) for n in counts for columns in range(1, n + 1) if n % columns == 0]
    ratio = math.log(width / height)
    return min(grids, key=lambda grid: abs(ratio - math.log(grid[1] / grid[0])))


def _floor(pixels: float, multiple: int) -> int:
    return max(int(pixels / multiple), 1) * multiple


def _fit(height: float, width: float, size: int, patch: int) -> Size:
    """Compute the size with this aspect ratio and the area size x size; sides are rounded down to whole patches."""
    ratio = width / height
    high = int(size / math.sqrt(ratio))
    wide = int(high * ratio)
    return _floor(high, patch), _floor(wide, patch)


@dataclass(frozen=True)
class Uhd(Tiling):
    """Gives slices whose shape follows the image, then an overview. See `plan_uhd`.

    Args:
        max_slices: most slices in a grid; 1 leaves the overview alone.
        size: side of the square whose area every view keeps, pixels.
        patch: sides are multiples of this, pixels.
    """

    max_slices: int = 7
    size: int = 336
    patch: int = 14

    def __call__(self, height: int, width: int) -> TilePlan:
        return plan_uhd(height, width, max_slices=self.max_slices, size=self.size, patch=self.patch)


@dataclass(frozen=True)
class UhdArxiv(Tiling):
    """Gives the slices of LLaVA-UHD's first version, then an overview. See `plan_uhd_arxiv`.

    Args:
        max_slices: limit of the ideal count of slices.
        size: side of the square whose patches a view may have, pixels.
        patch: side of a patch, pixels.
    """

    max_slices: int = 6
    size: int = 336
    patch: int = 14

    def __call__(self, height: int, width: int) -> TilePlan:
        return plan_uhd_arxiv(height, width, max_slices=self.max_slices, size=self.size, patch=self.patch)
