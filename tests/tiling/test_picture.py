"""The part of an image that a view shows, and the drawing of it."""

from __future__ import annotations

import pytest
from PIL import Image

from lit_mm.tiling.anyres import plan_anyres
from lit_mm.tiling.picture import LONGER, draw_plan, region
from lit_mm.tiling.plan import TilePlan, plan_square
from lit_mm.tiling.square import plan_centre_crop, plan_pad
from lit_mm.tiling.uhd import plan_uhd
from lit_mm.tiling.windows import plan_windows


@pytest.mark.parametrize(
    ("plan", "view", "shown"),
    [
        (plan_square(30, 60, size=28), 0, (0, 0, 60, 30)),
        (plan_centre_crop(30, 60, size=30), 0, (15, 0, 45, 30)),
        (plan_pad(30, 60, size=28), 0, (0, -15, 60, 45)),
        (plan_windows(100, 200, size=(448, 896), window=448, stride=224), 1, (50, 0, 150, 100)),
    ],
)
def test_a_view_shows_its_box_in_pixels_of_the_image(plan: TilePlan, view: int, shown: tuple[float, ...]) -> None:
    assert region(plan.views[view], plan.image) == pytest.approx(shown)


def test_slices_cover_the_image_once() -> None:
    plan = plan_uhd(480, 640)
    areas = [region(plan.views[number], plan.image) for number in plan.tiles]
    assert sum((right - left) * (bottom - top) for left, top, right, bottom in areas) == pytest.approx(480 * 640)


@pytest.mark.parametrize("size", [(480, 640), (1, 2000), (2000, 1), (5000, 4000)])
def test_any_image_is_drawn_within_bounds(size: tuple[int, int]) -> None:
    drawn = draw_plan(plan_anyres(*size), None, "one line\nanother")
    assert max(drawn.size) <= LONGER + 20 + 26 * 2 + 10
    assert min(drawn.size) > 20


def test_the_image_lies_where_it_is_not_padding() -> None:
    drawn = draw_plan(plan_pad(100, 200, size=28), Image.new("RGB", (200, 100), "yellow"))
    assert drawn.getpixel((300, 510)) == (255, 255, 0)  # beside the number in the middle
    assert drawn.getpixel((300, 100)) == (48, 48, 48)
