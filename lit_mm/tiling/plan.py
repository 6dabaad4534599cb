"""What a tiling policy says about one image: which views to cut, at which sizes. Numbers only, no pixels or tensors."""

from __future__ import annotations

from dataclasses import dataclass

Size = tuple[int, int]  # (height, width), pixels


@dataclass(frozen=True, slots=True)
class View:
    """One input of the vision encoder.

    The whole image is resized to `resize`, laid on a canvas of size `canvas` with its top left corner at `offset`
    (what it does not cover is padding), `box` is cut out and, where it differs, brought to `size`.

    Attributes:
        resize, canvas, size: (height, width), pixels.
        offset: (top, left), pixels. Negative values crop.
        box: (top, left, height, width) on the canvas, pixels.
    """

    resize: Size
    canvas: Size
    offset: Size
    box: tuple[int, int, int, int]
    size: Size


@dataclass(frozen=True, slots=True)
class TilePlan:
    """Where to cut one image.

    Attributes:
        grid: (rows, columns) of tiles; (1, 1) for a family that does not tile.
        views: in the order in which they enter the vision encoder.
        thumbnail: the first view (`grid` excluded) is the whole image shrunk.
    """

    grid: tuple[int, int]
    views: tuple[View, ...]
    thumbnail: bool = False


def plan_square(height: int, width: int, *, size: int) -> TilePlan:
    """Stretch the whole image to one `size` x `size` view; the aspect ratio is not kept.

    Args:
        height, width: source image, pixels.
        size: side of the view, pixels.
    Raises:
        ValueError: the image is empty.
    Source: InternLM-XComposer2, non-HD pre-processing (resize to S x S, bicubic).
    """
    if min(height, width) < 1:
        raise ValueError(f"plan_square needs a non-empty image, got {height=}, {width=}")
    side = (size, size)
    return TilePlan(grid=(1, 1), views=(View(side, side, (0, 0), (0, 0, size, size), side),))
