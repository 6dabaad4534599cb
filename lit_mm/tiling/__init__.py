"""Tilings cut an image into views. They are arithmetic on sizes, without pixels or tensors."""

from lit_mm.tiling.anyres import AnyRes
from lit_mm.tiling.canvas import Canvas
from lit_mm.tiling.hd import Hd
from lit_mm.tiling.plan import Stretch, TilePlan, Tiling, View
from lit_mm.tiling.square import CentreCrop, Pad
from lit_mm.tiling.two_sizes import TwoSizes
from lit_mm.tiling.uhd import Uhd, UhdArxiv
from lit_mm.tiling.windows import Whole, Windows

__all__ = [
    "AnyRes",
    "Canvas",
    "CentreCrop",
    "Hd",
    "Pad",
    "Stretch",
    "TilePlan",
    "Tiling",
    "TwoSizes",
    "Uhd",
    "UhdArxiv",
    "View",
    "Whole",
    "Windows",
]
