"""Grids of patches and of visual tokens, as plain data."""

from __future__ import annotations

import pickle

import pytest

from lit_mm.errors import UserError
from lit_mm.tiling.grids import FixedGrid, GridRule, HalvedColumns, MergedGrid, PatchGrid, SameGrid, TokenGrid

PATCHES = PatchGrid(14, "ViT")


@pytest.mark.parametrize(
    ("rule", "size", "grid"),
    [
        (PATCHES, (28, 56), (2, 4)),
        (SameGrid(), (2, 4), (2, 4)),
        (FixedGrid(1, 64), (2, 4), (1, 64)),
        (FixedGrid(3, 3, square="Resampler"), (5, 5), (3, 3)),
        (MergedGrid(2, "MergeMLP"), (4, 6), (2, 3)),
        (HalvedColumns(), (3, 4), (2, 2)),
        (HalvedColumns(), (3, 5), (3, 2)),
        (TokenGrid(PATCHES, MergedGrid(2, "MergeMLP")), (56, 84), (2, 3)),
    ],
)
def test_a_rule_makes_its_grid_and_pickles(rule: GridRule, size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert rule(size) == pickle.loads(pickle.dumps(rule))(size) == grid


@pytest.mark.parametrize(
    ("rule", "size", "message"),
    [
        (PATCHES, (28, 30), "ViT: a view must be a multiple of the patch, 14 pixels, got 28 x 30"),
        (PATCHES, (0, 28), "got 0 x 28"),
        (FixedGrid(3, 3, square="Resampler"), (5, 6), "Resampler: reads square grids of patches, got 5 x 6"),
        (MergedGrid(2, "MergeMLP"), (3, 4), r"MergeMLP\(merge=2\) needs a grid of patches that 2 divides, got 3 x 4"),
    ],
)
def test_a_grid_that_a_part_does_not_take_is_refused_in_its_name(
    rule: GridRule, size: tuple[int, int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        rule(size)
