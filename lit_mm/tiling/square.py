"""Tilings of LLaVA, LLaVA-1.5 and VILA with one square view that keeps the aspect ratio, cropped or padded."""

from __future__ import annotations

from dataclasses import dataclass

from lit_mm.errors import UserError
from lit_mm.tiling.plan import TilePlan, Tiling, View, require_pixels

MOST_PIXELS = 2**26  # 200 MB of RGB; at 336 pixels an aspect ratio of 594


def plan_centre_crop(height: int, width: int, *, size: int) -> TilePlan:
    """Resize the shorter side to `size` and keep the middle `size` x `size`; the rest is lost.

    The longer side is truncated to whole pixels and an odd remainder is cropped at the bottom or right: 480 x 640
    becomes 336 x 448, of which the columns 56 to 391 are kept.

    Args:
        height, width: source image, pixels.
        size: side of the view, pixels.
    Raises:
        UserError: the image is empty, or so long that resizing it takes more than `MOST_PIXELS`.
    Source: CLIP's image processor, which LLaVA ("square" mode), stage 1 of LLaVA-1.5 and of VILA apply unchanged.
    """
    require_pixels("plan_centre_crop", height, width)
    short, long = sorted((height, width))
    scaled = int(size * long / short)  # truncated, as the processor does
    if scaled * size > MOST_PIXELS:
        raise UserError(
            f"plan_centre_crop cannot take an image of {width} x {height} pixels: with {size} on the shorter side "
            f"it has {scaled} on the longer one, of which {size} would be kept. Leave the image out, or pad it"
        )
    resize = (size, scaled) if height <= width else (scaled, size)
    box = (resize[0] - size) // 2, (resize[1] - size) // 2, size, size
    return TilePlan((height, width), (1, 1), (View(resize, resize, (0, 0), box, (size, size)),))


def plan_pad(height: int, width: int, *, size: int) -> TilePlan:
    """Lay the image, at its own size, on the middle of a square and resize that to `size` x `size`.

    Nothing is lost or distorted. The colour of the padding is the processor's (`Normalise.fill`): the mean of CLIP,
    (122, 116, 104). Padding comes before resizing, so a soft edge runs along it. The square itself is never built, see
    `lit_mm.samples.pixels.resize_box`: a screenshot of 1080 x 20000 pixels takes 40 MB beside its own pixels.

    Args:
        height, width: source image, pixels.
        size: side of the view, pixels.
    Raises:
        UserError: the image is empty.
    Source: LLaVA-1.5, `image_aspect_ratio: pad` (stage 2 and inference); VILA, stages 2 and 3. An odd remainder goes to
        the bottom or right.
    """
    require_pixels("plan_pad", height, width)
    side = max(height, width)
    offset = (side - height) // 2, (side - width) // 2
    view = View((height, width), (side, side), offset, (0, 0, side, side), (size, size))
    return TilePlan((height, width), (1, 1), (view,))


@dataclass(frozen=True)
class CentreCrop(Tiling):
    """Gives one square view of the middle of the image. See `plan_centre_crop`.

    Args:
        size: side of the view, pixels.
    """

    size: int

    def __call__(self, height: int, width: int) -> TilePlan:
        return plan_centre_crop(height, width, size=self.size)


@dataclass(frozen=True)
class Pad(Tiling):
    """Gives one square view of the whole image, padded to a square. See `plan_pad`.

    Args:
        size: side of the view, pixels.
    """

    size: int

    def __call__(self, height: int, width: int) -> TilePlan:
        return plan_pad(height, width, size=self.size)
