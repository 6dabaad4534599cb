"""Words that many error messages share."""

from __future__ import annotations

import pytest

from lit_mm.errors import first_line, nearest, suggestion


@pytest.mark.parametrize(
    ("name", "guess", "continuation"),
    [
        ("widht", "Did you mean 'width'?", ". Did you mean 'width'?"),
        ("colour", "", ""),
        ("", "", ""),
    ],
)
def test_only_a_similar_name_is_suggested(name: str, guess: str, continuation: str) -> None:
    names = (name for name in ("width", "depth"))
    assert suggestion(name, names) == guess
    assert nearest(name, ["width", "depth"]) == continuation


def test_other_words_stand_in_for_a_suggestion() -> None:
    assert suggestion("colour", ["width"], otherwise="There are width.") == "There are width."
    assert suggestion("widht", ["width"], otherwise="There are width.") == "Did you mean 'width'?"


@pytest.mark.parametrize(
    ("text", "line"),
    [("no such file", "no such file"), ("\n no access.\nSee the log.", "no access"), ("", "OSError")],
)
def test_the_first_line_of_an_error_has_no_full_stop(text: str, line: str) -> None:
    assert first_line(OSError(text)) == line
