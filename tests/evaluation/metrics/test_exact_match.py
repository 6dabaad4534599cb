"""Exact match of short answers."""

import pytest

from lit_mm.evaluation.exact_match import exact_match


@pytest.mark.parametrize(
    ("answer", "truth", "same"),
    [
        ("red", "red", True),
        (" Red. ", "red", True),
        ("a  red\ncircle", "A red circle", True),
        ("red .", "red", True),
        ("3.5", "3.5", True),
        ("3.5", "35", False),
        ("red..", "red", False),
        ("red circle", "red", False),
        ("", "red", False),
        ("no", "No", True),
    ],
)
def test_case_white_space_and_a_final_full_stop_do_not_count(answer, truth, same):
    assert exact_match(answer, truth) is same
    assert exact_match(truth, answer) is same
