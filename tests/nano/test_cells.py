"""The signs of a page and their cells."""

from collections import Counter

import numpy as np
import pytest

from lit_mm.nano.cells import cells, signs, type_page, words
from lit_mm.nano.elements import Rule, Text
from lit_mm.nano.world import SKILLS, page
from lit_mm.prompts.source import load_tokenizer

KINDS = pytest.mark.parametrize("kind", SKILLS)


def pages(kind: str, count: int = 30):
    return [page(index, split="text", seed=0, kind=kind) for index in range(count)]


@KINDS
def test_every_letter_shape_and_bar_is_one_sign_inside_its_element(kind: str):
    for shown in pages(kind):
        found = list(signs(shown))
        wanted = Counter()
        for element in shown.elements:
            if not isinstance(element, Rule):
                wanted[element] += len(element.text) if isinstance(element, Text) else 1
        assert Counter(sign.element for sign in found) == wanted
        for sign in found:
            left, top, right, bottom = sign.element.box
            assert left < sign.x < right and top <= sign.y < bottom


@KINDS
def test_signs_of_a_text_spell_it_from_left_to_right(kind: str):
    for shown in pages(kind):
        for element in (e for e in shown.elements if isinstance(e, Text)):
            own = [sign for sign in signs(shown) if sign.element == element]
            assert "".join(sign.letter for sign in own) == element.text
            assert [sign.x for sign in own] == sorted(sign.x for sign in own)


def test_a_cell_is_told_from_the_middle_of_a_sign():
    for shown in pages("locate"):
        for cell, sign in cells(shown, 4, 8):
            row, column = divmod(cell, 8)
            assert row <= sign.y * 4 < row + 1 and column <= sign.x * 8 < column + 1


@KINDS
def test_everything_that_is_transcribed_is_typed(kind: str):
    """The signs as words, in raster order, equal the transcript without punctuation."""
    for shown in pages(kind):
        typed = sorted(word for sign in signs(shown, whole_words=True) for word in words(sign, kind))
        transcript = shown.transcript.replace(" ; ", " ").replace("[", "").replace("]", "").replace(",", " ").split()
        if kind == "count":  # names the kinds alone
            typed = sorted(sign.element.kind for sign in signs(shown))
        wanted = sorted(
            piece
            for word in transcript
            for piece in ([word] if word.islower() or kind == "locate" or kind == "chart" else word)
        )
        assert typed == wanted


def test_a_typed_page_holds_the_tokens_of_its_cells_in_reading_order():
    tokenizer = load_tokenizer("nano")
    shown = page(0, split="text", seed=0, kind="form")
    typed = type_page(shown, tokenizer, 8, 8, 6)
    assert typed.shape == (6, 8, 8)
    for row in range(8):
        for column in range(8):
            told = [
                tokenizer.encode(s.letter)[0] for c, s in cells(shown, 8, 8, whole_words=True) if c == row * 8 + column
            ]
            ids = typed[:, row, column]
            assert list(ids[ids != tokenizer.pad_id]) == told[:6]
            assert (ids[len(told) :] == tokenizer.pad_id).all()
    crowded = type_page(shown, tokenizer, 1, 1, 2)  # two tokens a cell at most
    assert (crowded != tokenizer.pad_id).sum() == 2


def test_typed_pages_differ_where_the_pages_do():
    tokenizer = load_tokenizer("nano")
    one, other = (type_page(shown, tokenizer, 8, 8, 6) for shown in pages("table", 2))
    assert (one != other).any() and np.array_equal(one, type_page(pages("table", 1)[0], tokenizer, 8, 8, 6))
