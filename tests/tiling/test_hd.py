"""The HD transform: the most tiles within the budget, and padding to whole tiles."""

from __future__ import annotations

import math
from random import Random

import pytest
import torch

from lit_mm.errors import UserError
from lit_mm.samples.pixels import Normalise, cut_views
from lit_mm.tiling.hd import plan_hd


@pytest.mark.parametrize("budget", [1, 4, 9, 16, 25, 55])
def test_the_budget_is_kept_and_one_tile_more_along_the_longer_side_would_break_it(budget):
    rng = Random(budget)
    for _ in range(200):
        height, width = rng.randint(1, 3000), rng.randint(1, 3000)
        if max(height, width) / min(height, width) > 336:
            continue
        plan = plan_hd(height, width, max_tiles=budget)
        rows, columns = plan.grid
        assert len(plan.tiles) == rows * columns <= budget
        along, ratio = max(rows, columns), max(height, width) / min(height, width)
        assert (along + 1) * math.ceil((along + 1) / ratio) > budget
        view = plan.views[0]
        free = [canvas - size for canvas, size in zip(view.canvas, view.resize, strict=True)]
        assert min(free) == 0  # padding on one axis alone
        assert max(free) < 336 or budget < 4


def test_a_small_image_is_enlarged_and_the_papers_picture_has_eleven_columns():
    assert plan_hd(336, 336).grid == (5, 5)
    assert plan_hd(1600, 3840, max_tiles=55).grid == (5, 11)


def test_the_padding_is_white_above_and_below_and_in_the_global_view():
    black = torch.zeros(3, 50, 150, dtype=torch.uint8)
    plan = plan_hd(50, 150, max_tiles=4, tile=28)
    assert plan.grid == (1, 3)
    tall = plan_hd(20, 55, max_tiles=4, tile=28)
    whole, *tiles = cut_views(black, tall.views, Normalise((0.0,) * 3, (1.0,) * 3))
    assert tall.grid == (1, 2)
    for view in (whole, *tiles):
        assert view[:, 0].min() > 0.9
        assert view[:, -1].min() > 0.9
        assert view[:, 14].max() < 0.1


def test_an_image_of_which_nothing_would_be_left_is_refused():
    plan_hd(1, 3000, max_tiles=9)
    with pytest.raises(UserError, match=r"30000 x 1 pixels.*the shorter side has no pixel left.*Leave the image out"):
        plan_hd(1, 30_000, max_tiles=9)
