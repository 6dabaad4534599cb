"""LLaVA-UHD's slices: shapes close to the image's, whole patches, bounded areas."""

from __future__ import annotations

from random import Random

import pytest

from lit_mm.errors import UserError
from lit_mm.tiling.uhd import plan_uhd, plan_uhd_arxiv


def random_sizes(count: int) -> list[tuple[int, int]]:
    rng = Random(0)
    return [(rng.randint(20, 4000), rng.randint(20, 4000)) for _ in range(count)]


def test_views_are_whole_patches_of_no_more_than_the_encoders_area():
    for height, width in random_sizes(300):
        for plan in (plan_uhd(height, width), plan_uhd_arxiv(height, width)):
            for view in plan.views:
                assert view.size[0] % 14 == view.size[1] % 14 == 0
                assert view.size[0] * view.size[1] <= 336 * 336 or min(view.size) == 14


def test_there_are_at_most_seven_slices_and_never_one():
    counts = {len(plan_uhd(*size).tiles) for size in random_sizes(300)}
    assert max(counts) <= 7
    assert 1 not in counts


def test_the_worked_example():
    plan = plan_uhd(480, 640)
    assert plan.grid == (2, 2)
    assert [view.size for view in plan.views] == [(280, 378)] * 5
    assert plan.thumbnail == "last"
    assert list(plan.tiles) == [0, 1, 2, 3]


def test_a_square_gets_two_rows_of_three():
    """The logarithms of 3/2 and 2/3 differ in the last bit, which decides in the release."""
    assert plan_uhd(1024, 1024).grid == (2, 3)


def test_an_image_of_one_slice_has_only_its_overview():
    plan = plan_uhd(336, 336)
    assert plan.grid == (0, 0)
    assert not plan.tiles
    assert [view.size for view in plan.views] == [(336, 336)]


def test_slices_of_the_first_version_cover_the_original_without_overlap():
    for height, width in random_sizes(100):
        plan = plan_uhd_arxiv(height, width)
        boxes = [plan.views[number].box for number in plan.tiles]
        assert sum(high * wide for _, _, high, wide in boxes) in (0, height * width)
        assert all(plan.views[number].resize == (height, width) for number in plan.tiles)


def test_the_first_version_cuts_a_line_in_two():
    plan = plan_uhd_arxiv(1, 1000)
    assert [view.box for view in plan.views[:2]] == [(0, 0, 1, 500), (0, 500, 1, 500)]


@pytest.mark.parametrize("plan", [plan_uhd, plan_uhd_arxiv])
def test_an_empty_image_is_refused(plan):
    with pytest.raises(UserError, match=f"{plan.__name__} needs a non-empty image"):
        plan(7, 0)
