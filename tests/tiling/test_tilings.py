"""Tilings as plain data: they call their functions, compare, pickle and print."""

from __future__ import annotations

import pickle
from dataclasses import replace
from functools import partial

import pytest

from lit_mm.errors import UserError
from lit_mm.tiling import AnyRes, Canvas, CentreCrop, Hd, Pad, Stretch, Tiling, TwoSizes, Uhd, UhdArxiv, Whole, Windows
from lit_mm.tiling.anyres import plan_anyres
from lit_mm.tiling.canvas import plan_canvas
from lit_mm.tiling.hd import plan_hd
from lit_mm.tiling.plan import View, plan_square
from lit_mm.tiling.square import plan_centre_crop, plan_pad
from lit_mm.tiling.uhd import plan_uhd, plan_uhd_arxiv
from lit_mm.tiling.windows import plan_whole, plan_windows

TILINGS = [
    (Stretch(28), partial(plan_square, size=28)),
    (CentreCrop(28), partial(plan_centre_crop, size=28)),
    (Pad(28), partial(plan_pad, size=28)),
    (AnyRes(), plan_anyres),
    (AnyRes(28, ((1, 2),), "hf"), partial(plan_anyres, tile=28, grids=((1, 2),), rule="hf")),
    (Hd(), plan_hd),
    (Hd(9, 28), partial(plan_hd, max_tiles=9, tile=28)),
    (TwoSizes(28, 56), lambda *size: replace(plan_square(*size, size=28), second=(View.whole((56, 56)),))),
    (Uhd(), plan_uhd),
    (Uhd(3, 28, 7), partial(plan_uhd, max_slices=3, size=28, patch=7)),
    (UhdArxiv(), plan_uhd_arxiv),
    (UhdArxiv(3, 28, 7), partial(plan_uhd_arxiv, max_slices=3, size=28, patch=7)),
    (Windows(), plan_windows),
    (Windows((56, 84), 28, 14), partial(plan_windows, size=(56, 84), window=28, stride=14)),
    (Whole((56, 84), 28), partial(plan_whole, size=(56, 84), window=28)),
    (Canvas(90, 120, 30), partial(plan_canvas, canvas=(90, 120), patch=30)),
]


@pytest.mark.parametrize(("tiling", "function"), TILINGS, ids=[repr(tiling) for tiling, _ in TILINGS])
def test_a_tiling_makes_the_plans_of_its_function(tiling: Tiling, function) -> None:
    for size in ((28, 28), (300, 700), (61, 97)):
        assert tiling(*size) == function(*size)
    assert pickle.loads(pickle.dumps(tiling)) == tiling


def test_every_tiling_of_the_package_is_among_them() -> None:
    assert {type(tiling) for tiling, _ in TILINGS} == set(Tiling.__subclasses__())


def test_a_tiling_prints_itself_as_it_is_written() -> None:
    assert repr(Hd(max_tiles=9, tile=28)) == "Hd(max_tiles=9, tile=28)"


@pytest.mark.parametrize("make", [partial(Stretch, 0), partial(Hd, 0), partial(Windows, (56, 0)), partial(Uhd, 7, -1)])
def test_counts_and_sizes_below_one_are_refused_with_the_tiling(make) -> None:
    with pytest.raises(UserError, match=r"counts and sizes of at least 1, got (Stretch|Hd|Windows|Uhd)\("):
        make()
