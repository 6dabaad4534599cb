"""Answers are rewritten before they are scored or submitted."""

import pytest

from lit_mm.errors import UserError
from lit_mm.evaluation.metrics.grounding import parse_box
from lit_mm.evaluation.postprocessing import find_postprocessing, postprocess


@pytest.mark.parametrize(
    ("names", "text", "expected"),
    [
        ((), " as it is \n", " as it is \n"),
        (("first_line",), "\n  a cat \nand more", "a cat"),
        (("first_line",), "\n \n", ""),
        (("vqa_server",), "The T-shirt's, dont.", "t shirt 's don't"),
        (("unit_box",), "It is at [0.10, 0.2, 0.5, 1.0].", "(99.9,199.8),(499.5,999)"),
        (("grid_box",), "[[037,102,558,779]]", "(37,102),(558,779)"),
        (("grid_box",), "nowhere", "nowhere"),
        (("first_line", "grid_box"), "[[1,2,3,4]]\n[[5,6,7,8]]", "(1,2),(3,4)"),
    ],
)
def test_steps_are_applied_in_order(names: tuple[str, ...], text: str, expected: str) -> None:
    assert postprocess(text, names) == expected


def test_a_box_in_shares_of_the_image_is_read_in_pixels() -> None:
    assert parse_box(postprocess("[0.25, 0.5, 0.75, 1]", ["unit_box"]), 200, 400) == pytest.approx((100, 100, 300, 200))


def test_an_unknown_step_is_refused() -> None:
    with pytest.raises(UserError, match="unknown post-processing 'lower'"):
        find_postprocessing("lower", "x.yaml")
