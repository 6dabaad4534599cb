"""The protocol of vision encoders."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Protocol

from torch import Tensor

from lit_mm.tiling.grids import GridRule


class VisionEncoder(Protocol):
    """[V, 3, H, W] normalised pixels -> [V, N, D] patch features.

    A class that extends this protocol gets its defaults. A plain module needs `width` and `token_grid` alone: it gets
    the other attributes when the model is composed.

    Attributes:
        width: D, width of the features.
        image_size: side of the only views that it takes, pixels; None if it takes views of several sizes.
        any_size: True if it takes views of any size, whatever `image_size` says, and groups of views of several shapes
            in one call. Its output is then padded to the longest view; the valid patches of a view come first.
        reads_tiles: True if it also takes `tiles` [V], see `lit_mm.samples.batch.Views`.
        windows: number of windows that it has adapters for (Monkey's); 0 if it has none.
        returns_class_token: True if its class token precedes the patches in its output.
        mean, std: constants per channel that normalise pixels in [0, 1]; None: those of the family, CLIP's by default.
        two_maps: True if its output is `lit_mm.layers.two_maps.TwoMaps`, features at two resolutions.
        reads_pixels: False if its views are no pixels; their cost is then not planned.
    """

    width: int
    image_size: int | None = None
    any_size: bool = False
    reads_tiles: bool = False
    windows: int = 0
    returns_class_token: bool = False
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    two_maps: bool = False
    reads_pixels: bool = True

    @abstractmethod
    def token_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of a view, pixels -> (rows, columns) of patches."""

    @abstractmethod
    def __call__(self, *inputs: Any) -> Tensor:
        """Features of the views, see the class."""


class Patched(VisionEncoder, Protocol):
    """A vision encoder whose token counts a processor can compute without it, as families need.

    Attributes:
        patch_grid: rule (height, width) of a view, pixels -> (rows, columns) of patches.
    """

    patch_grid: GridRule
