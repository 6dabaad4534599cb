"""The tiling of XComposer2-4KHD: a view of the padded whole, then as many tiles as the budget allows."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lit_mm.errors import UserError
from lit_mm.tiling.plan import TilePlan, Tiling, View, require_pixels, tiles_of


def plan_hd(height: int, width: int, *, max_tiles: int = 25, tile: int = 336) -> TilePlan:
    """Resize the image, its aspect ratio kept, to the most tiles along its longer side that the budget allows.

    With s tiles along the longer side and an aspect ratio r >= 1 there are ceil(s / r) along the shorter one; s is the
    largest whose product fits. Small images are enlarged: 336 x 336 becomes 5 x 5 tiles of HD-25. A picture of
    1600 x 3840 at HD-55 becomes 5 x 11 tiles (the paper says 12 columns; those would need 60).

    Args:
        height, width: size of the source image, pixels.
        max_tiles: budget of tiles, the H of "HD-H"; published: 9, 16, 25 (pre-training), 55.
        tile: side of a tile and of the view of the whole, pixels.
    Raises:
        UserError: the image is empty, or so long that its shorter side would round to nothing.
    Source: arXiv:2404.06512 section 3.2 and the released `HD_transform`: bilinear resize, odd padding at the bottom or
        right, padding is white, and the view of the whole is taken from the padded, normalised image without
        antialiasing. The release turns a portrait on its side to resize it; here it is not turned, and pixels differ by
        at most 1 of 255.
    """
    require_pixels("plan_hd", height, width)
    short, long = sorted((height, width))
    ratio = long / short
    along = max((s for s in range(1, max_tiles + 1) if s * math.ceil(s / ratio) <= max_tiles), default=0)
    longer, shorter = along * tile, int(along * tile / ratio)
    if shorter < 1:
        raise UserError(
            f"plan_hd cannot tile an image of {width} x {height} pixels: with {longer} along its longer side, "
            f"the shorter side has no pixel left (max_tiles={max_tiles}). Leave the image out"
        )
    across = math.ceil(shorter / tile)
    resize, grid = ((longer, shorter), (along, across)) if height > width else ((shorter, longer), (across, along))
    tiles = tiles_of(resize, grid, (tile, tile), resample="bilinear")
    canvas = tiles[0].canvas
    whole = View(resize, canvas, tiles[0].offset, (0, 0, *canvas), (tile, tile), resample="bilinear", antialias=False)
    return TilePlan((height, width), grid, (whole, *tiles), thumbnail="first")


@dataclass(frozen=True)
class Hd(Tiling):
    """Gives a view of the padded whole, then as many tiles as the budget allows. See `plan_hd`.

    Args:
        max_tiles: budget of tiles, the H of "HD-H".
        tile: side of a tile and of the view of the whole, pixels.
    """

    max_tiles: int = 25
    tile: int = 336

    def __call__(self, height: int, width: int) -> TilePlan:
        return plan_hd(height, width, max_tiles=self.max_tiles, tile=self.tile)
