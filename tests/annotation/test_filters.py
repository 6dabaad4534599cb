"""Monkey's filters say why a description is dropped."""

from __future__ import annotations

import numpy as np
import pytest

from lit_mm.annotation.description import Description, crop, rounded_box
from lit_mm.annotation.filters import MonkeyRules, filter_by_score, filter_segments, overlap, write_block
from lit_mm.errors import UserError
from tests.tiny import Noise


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0.0, 0.0, 0.5, 0.5), (0.0, 0.0, 0.5, 0.5), 1.0),
        ((0.0, 0.0, 0.2, 0.2), (0.2, 0.0, 0.4, 0.2), 0.0),
        ((0.0, 0.0, 0.4, 0.2), (0.2, 0.0, 0.6, 0.2), 1 / 3),
        ((0.1, 0.1, 0.1, 0.1), (0.1, 0.1, 0.1, 0.1), 0.0),
    ],
)
def test_the_usual_overlap_of_two_boxes(
    a: tuple[float, float, float, float], b: tuple[float, float, float, float], expected: float
) -> None:
    assert overlap(a, b, pixel_convention=False) == pytest.approx(expected)


def test_a_dropped_description_has_its_reason() -> None:
    low, high = Description("a dog", (0, 0, 1, 1), 0.4), Description("a cat", (0, 0, 1, 1), 0.401)
    first, second = filter_by_score([low, high], 0.4)
    assert (first.rule, first.reason) == ("score", "its score 0.4 is not above 0.4")
    assert second.passed and second.reason == ""


def test_a_repeated_caption_is_compared_with_the_first_box_of_its_text_only() -> None:
    texts = [
        Description("a man", (0.0, 0.0, 0.5, 0.5), 0.9),
        Description("a man", (0.6, 0.6, 0.9, 0.9), 0.9),  # far from the first
        Description("a man", (0.6, 0.6, 0.9, 0.9), 0.9),  # equal to the second, far from the first
        Description("a man", (0.0, 0.0, 0.5, 0.4), 0.9),  # on the first
        Description("a dog", (0.0, 0.0, 0.5, 0.5), 0.9),  # another text
    ]
    verdicts = filter_segments(texts, MonkeyRules())
    assert [verdict.rule for verdict in verdicts] == ["", "", "", "overlap", ""]
    assert "with the first box of this text is not below 0.6" in verdicts[3].reason


def test_the_corrected_overlap_passes_repeats_that_the_released_one_drops() -> None:
    texts = [Description("a man", (0.0, 0.0, 0.2, 0.2), 0.9), Description("a man", (0.2, 0.0, 0.4, 0.2), 0.9)]
    assert [verdict.passed for verdict in filter_segments(texts, MonkeyRules())] == [True, False]
    assert all(verdict.passed for verdict in filter_segments(texts, MonkeyRules(pixel_overlap=False)))


def test_a_description_without_a_score_cannot_be_filtered() -> None:
    with pytest.raises(UserError, match="has no score"):
        filter_by_score([Description("a dog")], 0.4)


def test_the_default_thresholds_are_those_of_the_released_script() -> None:
    assert MonkeyRules() == MonkeyRules(0.4, 0.85, 0.5, 0.6, 20, True)


@pytest.mark.parametrize("arguments", [{"region_score": 1.5}, {"segment_overlap": -1}, {"largest_segments": 0}])
def test_thresholds_out_of_range_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(UserError, match="thresholds are 0 to 1"):
        MonkeyRules(**arguments)


def test_a_box_in_pixels_becomes_ordered_shares_inside_of_the_image() -> None:
    assert rounded_box((50, 10, -5, 40), height=30, width=100) == (0.0, 0.333, 0.5, 1.0)


@pytest.mark.parametrize("kind", [np.float32, np.int64])
def test_a_box_of_numpy_is_written_with_three_decimals(kind: type) -> None:
    box = rounded_box(tuple(kind(side) for side in (10, 10, 20, 29)), kind(30), kind(90))
    assert write_block([Description("a dog", box)]) == "a dog: [0.111, 0.333, 0.222, 0.967]; "


@pytest.mark.parametrize(
    ("box", "size"),
    [((0.0, 0.0, 0.5, 0.5), (15, 10)), ((1.0, 1.0, 1.0, 1.0), (1, 1)), ((0.2, 0.2, 0.2, 0.9), (1, 14))],
)
def test_a_crop_has_at_least_one_pixel(box: tuple[float, float, float, float], size: tuple[int, int]) -> None:
    assert crop(Noise(0).read(), box).size == size  # the image is 30 x 20


@pytest.mark.parametrize(
    "box", [(-0.1, 0.0, 0.5, 0.5), (0.0, 0.0, 1.1, 0.5), (0.5, 0.0, 0.4, 1.0), (0.0, float("nan"), 1.0, 1.0)]
)
def test_a_box_outside_of_the_image_is_refused(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(UserError, match=r"shares of the image, 0 to 1, got \[.*for 'a dog'"):
        Description("a dog", box)


def test_no_description_gives_no_verdict() -> None:
    assert filter_by_score([], 0.4) == filter_segments([], MonkeyRules()) == []


def test_equal_boxes_of_a_text_pass_once_in_any_script() -> None:
    texts = ["山の写真 \U0001f5fb", "שלום", "山の写真 \U0001f5fb", "שלום", "山の写真 \U0001f5fb"]
    verdicts = filter_segments([Description(text, (0.2, 0.2, 0.6, 0.6), 0.9) for text in texts], MonkeyRules())
    assert [verdict.rule for verdict in verdicts] == ["", "", "overlap", "overlap", "overlap"]


def test_a_text_that_was_dropped_by_its_score_is_no_first_one() -> None:
    box = (0.2, 0.2, 0.6, 0.6)
    verdicts = filter_segments([Description("a dog", box, 0.5), Description("a dog", box, 0.501)], MonkeyRules())
    assert [verdict.rule for verdict in verdicts] == ["score", ""]
