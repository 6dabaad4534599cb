"""Regions as text: writing, reading and errors."""

from __future__ import annotations

import pytest

from lit_mm.errors import UserError
from lit_mm.prompts.boxes import Region, find_regions, to_pixels, to_thousandths, write_box, write_region


@pytest.mark.parametrize(
    ("box", "written"),
    [
        ((0, 0, 640, 480), (0, 0, 999, 999)),  # the far side would be 1000, which has no word
        ((64, 48, 320, 240), (100, 100, 500, 500)),
        ((0.5, 0.4, 0.7, 0.5), (0, 0, 1, 1)),
        ((639, 479, 639.9, 479.9), (998, 997, 999, 999)),
    ],
)
def test_pixels_become_thousandths_of_width_and_height(box: tuple, written: tuple) -> None:
    assert to_thousandths(box, height=480, width=640) == written


def test_a_box_does_not_change_with_the_size_of_its_picture() -> None:
    assert to_thousandths((10, 20, 30, 40), 100, 200) == to_thousandths((20, 40, 60, 80), 200, 400)


def test_what_is_written_is_read_back_within_a_thousandth() -> None:
    box = (123.0, 45.0, 321.0, 400.0)
    back = to_pixels(to_thousandths(box, 480, 640), 480, 640)
    assert all(abs(a - b) <= side / 999 for a, b, side in zip(box, back, (640, 480, 640, 480), strict=True))


@pytest.mark.parametrize("box", [(-1, 0, 5, 5), (5, 0, 4, 5), (0, 0, 641, 5), (0, 9, 5, 5)])
def test_a_box_that_leaves_its_picture_is_refused(box: tuple) -> None:
    with pytest.raises(UserError, match="inside its picture of 640 x 480"):
        to_thousandths(box, height=480, width=640)


@pytest.mark.parametrize("box", [(0, 0, 1000, 5), (-1, 0, 1, 1), (2, 0, 1, 1)])
def test_a_box_that_is_not_in_thousandths_is_not_written(box: tuple) -> None:
    with pytest.raises(UserError, match="thousandths from 0 to 999"):
        write_box(box)


def test_regions_are_read_in_order_each_with_its_boxes() -> None:
    two = Region("a dog", ((1, 2, 3, 4), (5, 6, 7, 8)))
    text = f"There is {write_region(two)} and {write_region(Region('a cat', ()))}, {write_box((0, 0, 9, 9))}"
    assert find_regions(text) == [two, Region("a cat", ((0, 0, 9, 9),))]
    assert find_regions("<box>(1,2),(3,4)</box>") == [Region("", ((1, 2, 3, 4),))]


def test_a_box_that_is_cut_is_not_read() -> None:
    assert find_regions("<ref>x</ref><box>(1,2),(3") == [Region("x", ())]
    assert find_regions("<box>(1,2,3,4)</box> nothing") == []
