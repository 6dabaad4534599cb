"""Regions as text: reading, and boxes in pixels."""

from __future__ import annotations

import pytest

from lit_mm.prompts.boxes import Region, find_regions, to_pixels


def test_regions_are_read_in_order_each_with_its_boxes() -> None:
    text = (
        "There is <ref>a dog</ref><box>(1,2),(3,4)</box><box>(5,6),(7,8)</box> and <ref>a cat</ref>, "
        "<box>(0,0),(9,9)</box>"
    )
    dog, cat = Region("a dog", ((1, 2, 3, 4), (5, 6, 7, 8))), Region("a cat", ((0, 0, 9, 9),))
    assert find_regions(text) == [dog, cat]
    assert find_regions("<box>(1,2),(3,4)</box>") == [Region("", ((1, 2, 3, 4),))]


def test_a_box_that_is_cut_is_not_read() -> None:
    assert find_regions("<ref>x</ref><box>(1,2),(3") == [Region("x", ())]
    assert find_regions("<box>(1,2,3,4)</box> nothing") == []


@pytest.mark.parametrize(
    ("box", "pixels"), [((0, 0, 999, 999), (0, 0, 640, 480)), ((333, 0, 999, 333), (213.33, 0, 640, 160))]
)
def test_the_last_thousandth_is_the_far_side(box: tuple, pixels: tuple) -> None:
    assert to_pixels(box, height=480, width=640) == pytest.approx(pixels, abs=0.01)
