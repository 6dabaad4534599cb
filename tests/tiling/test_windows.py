"""Monkey's windows: equal for all images, row-major, with the global view last."""

from __future__ import annotations

import pytest
import torch

from lit_mm.errors import UserError
from lit_mm.samples.pixels import Normalise, cut_views
from lit_mm.tiling.windows import plan_whole, plan_windows


def test_every_image_is_stretched_to_the_same_windows():
    first, second = plan_windows(30, 500), plan_windows(896, 896)
    assert first.views == second.views
    assert first.grid == (2, 2)
    assert first.thumbnail == "last"
    assert list(first.tiles) == [0, 1, 2, 3]


def test_windows_hold_their_quarter_and_the_last_view_the_whole():
    image = torch.zeros(3, 28, 28, dtype=torch.uint8)
    image[:, :14, 14:] = 255  # top right
    views = cut_views(image, plan_windows(28, 28, size=(28, 28), window=14).views, Normalise((0.0,) * 3, (1.0,) * 3))
    assert [view.mean().item() for view in views[:4]] == [0, 1, 0, 0]
    assert views[4].shape == (3, 14, 14)
    assert views[4][0, 2, 11] == pytest.approx(1, abs=0.01)
    assert views[4][0, 2, 2] == pytest.approx(0, abs=0.01)


def test_a_size_smaller_than_a_window_leaves_the_whole_alone():
    plan = plan_windows(5, 5, size=(447, 900), window=448)
    assert plan.grid == (0, 0)
    assert [view.size for view in plan.views] == [(448, 448)]


def test_the_whole_alone_is_the_last_of_the_views_and_no_window():
    alone = plan_whole(30, 500)
    assert alone.views == plan_windows(30, 500).views[-1:] and alone.tile_numbers == [-1]


@pytest.mark.parametrize("plan", [plan_windows, plan_whole])
def test_an_empty_image_is_refused(plan):
    with pytest.raises(UserError, match=f"{plan.__name__} needs a non-empty image"):
        plan(0, 1)
