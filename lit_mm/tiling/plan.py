"""Tile plans hold the views to cut from one image and their sizes. They are numbers only, without pixels or tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Literal

from lit_mm.errors import UserError

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
        resample: filter of the first resize, antialiased.
        antialias: True resizes `box` to `size` as antialiased 8-bit pixels, like image libraries; False resizes
            normalised values without antialiasing, as some models do in their forward pass. Both are bicubic.
    """

    resize: Size
    canvas: Size
    offset: Size
    box: tuple[int, int, int, int]
    size: Size
    resample: Literal["bicubic", "bilinear"] = "bicubic"
    antialias: bool = True

    @classmethod
    def whole(cls, size: Size) -> View:
        """Build a view of the whole image stretched to `size`; the aspect ratio is not kept."""
        return cls(size, size, (0, 0), (0, 0, *size), size)


@dataclass(frozen=True, slots=True)
class TilePlan:
    """Where to cut one image.

    Attributes:
        image: (height, width) of the source image, pixels.
        grid: (rows, columns) of tiles; (1, 1) for a family that does not tile, (0, 0) if there is only the thumbnail.
        views: views in the order in which they enter the vision encoder; tiles are row-major.
        thumbnail: place of the view that is the whole image shrunk, not counted in `grid`; None if there is none.
        second: views of the second vision encoder, which make no visual tokens; () if the model has one encoder.
    """

    image: Size
    grid: tuple[int, int]
    views: tuple[View, ...]
    thumbnail: Literal["first", "last"] | None = None
    second: tuple[View, ...] = ()

    @property
    def tiles(self) -> range:
        """Numbers of the views that are tiles."""
        return range(self.thumbnail == "first", len(self.views) - (self.thumbnail == "last"))

    @property
    def tile_numbers(self) -> list[int]:
        """Number of every view among the tiles, from 0; -1 for the thumbnail."""
        return [view - self.tiles.start if view in self.tiles else -1 for view in range(len(self.views))]


class Tiling(ABC):
    """A rule that cuts images into views. Subclasses are frozen dataclasses: plain data that compares and pickles.

    Raises:
        UserError: a count or a size in pixels is below 1.
    """

    def __post_init__(self) -> None:
        for field in fields(self):
            values = getattr(self, field.name)
            for value in values if isinstance(values, tuple) else (values,):
                if isinstance(value, int) and value < 1:
                    raise UserError(f"a tiling has counts and sizes of at least 1, got {self}")

    @abstractmethod
    def __call__(self, height: int, width: int) -> TilePlan:
        """Plan the views of an image of `height` x `width` pixels.

        Raises:
            UserError: the image is empty, or this tiling cannot cut it.
        """


def require_pixels(policy: str, height: int, width: int) -> None:
    """Refuse an empty image.

    Args:
        policy: name of the calling function, for the message.
        height, width: size of the image, pixels.
    Raises:
        UserError: the image is empty.
    """
    if min(height, width) < 1:
        raise UserError(f"{policy} needs a non-empty image, got {height=}, {width=}. Leave the image out")


def tiles_of(resize: Size, grid: tuple[int, int], tile: Size, **options: object) -> tuple[View, ...]:
    """Cut a grid of equal tiles, row-major, from a canvas that they cover; the image lies in its middle.

    Args:
        resize: size of the whole image after the first resize, pixels; not larger than the canvas. Odd padding leaves
            the extra pixel at the bottom and at the right.
        grid: (rows, columns).
        tile: (height, width) of one tile, pixels.
        options: further fields of `View`.
    """
    (rows, columns), (height, width) = grid, tile
    canvas = rows * height, columns * width
    offset = (canvas[0] - resize[0]) // 2, (canvas[1] - resize[1]) // 2
    return tuple(
        View(resize, canvas, offset, (row * height, column * width, height, width), tile, **options)
        for row in range(rows)
        for column in range(columns)
    )


def plan_square(height: int, width: int, *, size: int, patch: int = 1) -> TilePlan:
    """Stretch the whole image to one `size` x `size` view; the aspect ratio is not kept.

    Args:
        height, width: source image, pixels.
        size: side of the stretched image, pixels.
        patch: side of a patch, pixels. Pixels at the bottom and on the right that fill no patch are cut off: of 384
            pixels and patches of 14, 378 stay.
    Raises:
        UserError: the image is empty, or smaller than a patch.
    Source: InternLM-XComposer2, non-HD pre-processing; Qwen-VL; VILA-1.5 (resize to S x S, bicubic), whose SigLIP reads
        whole patches alone.
    """
    require_pixels("plan_square", height, width)
    side = size - size % patch
    if not side:
        raise UserError(f"Stretch: `patch` is at most `size`, got {patch} and {size}")
    view = View((size, size), (size, size), (0, 0), (0, 0, side, side), (side, side))
    return TilePlan((height, width), (1, 1), (view,))


@dataclass(frozen=True)
class Stretch(Tiling):
    """Gives one square view of the whole image, whose aspect ratio is not kept. See `plan_square`.

    Args:
        size: side of the stretched image, pixels.
        patch: side of a patch, pixels, for an encoder that reads whole patches of an image that they do not fill.
    """

    size: int
    patch: int = 1

    def __call__(self, height: int, width: int) -> TilePlan:
        return plan_square(height, width, size=self.size, patch=self.patch)
