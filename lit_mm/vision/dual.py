"""Two vision encoders that read one view: a coarse one in tiles, and a fine one that reads it whole."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_mm.errors import UserError
from lit_mm.layers.protocols import complete
from lit_mm.layers.two_maps import TwoMaps
from lit_mm.tiling.grids import RegionGrid
from lit_mm.vision.protocol import Patched

# V views, G tiles per side, R = G * G regions of a view, + 1 with an overview, N patches of a region


class DualEncoder(nn.Module):
    """Reads a view with a fine encoder, and a smaller copy of it with a coarse one. Parts: vision, second_vision.

    Only the fine view comes from the loader. The coarse one is made of it on the device: the normalised pixels are
    interpolated bilinearly, without antialiasing, to G times the size of the coarse encoder, and cut into G x G tiles.
    The overview is an interpolation of these pixels to one tile, and its fine map is that of the view, reduced by G.
    The regions of a view are the overview, then the tiles, row-major.

    Args:
        low: coarse vision encoder of one view size, without class token; its patches form a square.
        high: fine vision encoder of one view size. Its cells form a square, whose side G times the side of the coarse
            patches divides.
        tiles: G, number of tiles per side; 1 for a single coarse view.
        overview: True adds the overview to the tiles; it needs at least 2 tiles per side.
    Raises:
        UserError: an encoder takes several sizes, the coarse one returns a class token, the maps do not divide, or
            there is an overview of a single tile.
    Source: Mini-Gemini (arXiv:2403.18814), section 3; mgm_arch.py and train.py of the release. HD: `image_grid` 2 and
        `image_global`.
    """

    parts_within: ClassVar[dict[str, str]] = {"high": "second_vision"}
    any_size = False
    reads_tiles = False
    windows = 0
    returns_class_token = False
    two_maps = True

    def __init__(self, low: nn.Module, high: nn.Module, tiles: int = 1, overview: bool = False) -> None:
        super().__init__()
        for encoder, name in ((low, "low"), (high, "high")):
            complete(encoder, Patched, "vision encoder")
            if encoder.image_size is None or encoder.any_size or encoder.returns_class_token:
                raise UserError(
                    f"DualEncoder: `{name}` takes views of one size and returns patches alone, which "
                    f"{type(encoder).__name__} does not. Set `image_size`, and leave out `any_size` and the class token"
                )
        if tiles < 1 or (overview and tiles < 2):
            raise UserError(
                f"DualEncoder: `tiles` per side are at least 1, and at least 2 beside an `overview`, got {tiles}"
            )
        self.low, self.high, self.tiles, self.overview = low, high, tiles, overview
        self.tile_size, self.image_size = low.image_size, high.image_size
        self.mean, self.std = high.mean, high.std  # the release requires those of both encoders to be equal
        self.width, self.second_width = low.width, high.width
        patches, cells = (of.patch_grid((of.image_size, of.image_size)) for of in (low, high))
        self.cells = cells[0]
        if patches[0] != patches[1] or cells[0] != cells[1] or cells[0] % (tiles * patches[0]):
            raise UserError(
                f"DualEncoder: {tiles} x {tiles} tiles of {patches[0]} x {patches[1]} patches do not divide the "
                f"{cells[0]} x {cells[1]} cells of the fine encoder. Change `image_size` of one of the encoders: "
                "that of the fine one is a multiple of tiles x patches x size of its cells"
            )
        self.patch_grid = RegionGrid(self.image_size, patches[0], tiles * tiles + overview)

    def token_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of a view, pixels -> (rows of all regions one below the other, columns) of coarse patches.

        Raises:
            UserError: the view has another size than the fine encoder takes.
        """
        return self.patch_grid(size)

    def forward(self, pixels: Tensor) -> TwoMaps:
        """[V, 3, H, W] normalised pixels of the fine size -> features of the regions of each view."""
        views = low_views(pixels, self.tile_size, self.tiles, self.overview)  # [V, R, 3, h, w]
        low = self.low(views.flatten(0, 1)).unflatten(0, views.shape[:2])  # [V, R, N, D]
        cells = self.high(pixels).unflatten(1, (self.cells, self.cells))
        return TwoMaps(low, high_regions(cells, self.tiles, self.overview))


def low_views(pixels: Tensor, size: int, tiles: int, overview: bool) -> Tensor:
    """Shrink views and cut them into tiles: [V, 3, H, W] -> [V, R, 3, size, size], the overview first.

    Args:
        pixels: normalised pixels of square views.
        size: side of a tile, pixels.
        tiles: number of tiles per side.
        overview: True adds the shrunk whole.
    Source: mgm/serve/cli.py and train.py of the release, which append the overview to the tiles.
    """
    whole = F.interpolate(pixels.float(), size=(tiles * size, tiles * size), mode="bilinear", align_corners=False)
    cut = whole.unflatten(3, (tiles, size)).unflatten(2, (tiles, size))  # [V, 3, G, size, G, size]
    views = cut.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # [V, G * G, 3, size, size]
    if not overview:
        return views
    return torch.cat([F.interpolate(whole, size=(size, size), mode="bilinear", align_corners=False)[:, None], views], 1)


def high_regions(cells: Tensor, tiles: int, overview: bool) -> Tensor:
    """Cut fine maps as `low_views` cuts the pixels: [V, S, S, D'] -> [V, R, S / G, S / G, D'], the overview first.

    The map of the overview is the whole map, reduced bilinearly by G in fp32.
    """
    side = cells.shape[1] // tiles
    cut = cells.unflatten(2, (tiles, side)).unflatten(1, (tiles, side))  # [V, G, S / G, G, S / G, D']
    regions = cut.transpose(2, 3).flatten(1, 2)
    if not overview:
        return regions
    whole = F.interpolate(cells.permute(0, 3, 1, 2).float(), size=(side, side), mode="bilinear", align_corners=False)
    return torch.cat([whole.permute(0, 2, 3, 1).to(cells.dtype)[:, None], regions], dim=1)
