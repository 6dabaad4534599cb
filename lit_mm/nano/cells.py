"""Where on a page its signs stand: a lattice of cells, and in each cell the signs whose middle lies in it.

Both backbones are pre-trained on this. The language model reads pages whose cells hold tokens (`type_page`) and never
sees a pixel; the vision encoder sees pixels and learns how the signs of each cell look in one plain hand (`prints.py`)
and never meets a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lit_mm.nano.chart import BASE, TOP, UNITS
from lit_mm.nano.elements import Bar, Box, Element, Rule, Shape, Text
from lit_mm.nano.page import Page
from lit_mm.nano.render import TRACKING, advance, text_width
from lit_mm.prompts.tokenizer import Tokenizer

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


class Sign(NamedTuple):
    """A letter, digit, shape or bar.

    Attributes:
        x, y: where its cell is told from, in unit coordinates: the middle, of a bar the upper end.
        element: what it belongs to.
        letter: of a text, else "".
    """

    x: float
    y: float
    element: Element
    letter: str = ""


def signs(page: Page, *, whole_words: bool = False) -> Iterator[Sign]:
    """Everything on a page that has a meaning, in raster order of the elements and in reading order inside them.

    Args:
        whole_words: a lower-case word is one sign (`letter` holds all of it), as it is one token.
    """
    for element in page.elements:
        left, top, right, bottom = element.box
        middle = (left + right) / 2
        if isinstance(element, Text):
            y = (top + bottom) / 2
            if whole_words and element.text.islower():
                yield Sign(middle, y, element, element.text)
                continue
            scale, x = (right - left) / text_width(element.text), left
            for letter in element.text:
                yield Sign(x + advance(letter) * scale / 2, y, element, letter)
                x += (advance(letter) + TRACKING) * scale
        elif isinstance(element, Shape):
            yield Sign(middle, (top + bottom) / 2, element)
        elif isinstance(element, Bar):
            yield Sign(middle, top, element)
        else:
            assert isinstance(element, Rule)  # lines mean nothing


def cells(
    page: Page, rows: int, columns: int, *, whole_words: bool = False, window: Box = WHOLE
) -> Iterator[tuple[int, Sign]]:
    """(cell, sign) for every sign; cells are numbered in raster order.

    Args:
        whole_words: see `signs`.
        window: the part of the page over which the cells lie, in unit coordinates; signs outside are left out.
    """
    left, top, right, bottom = window
    for sign in signs(page, whole_words=whole_words):
        x, y = (min(sign.x, 0.999) - left) / (right - left), (min(sign.y, 0.999) - top) / (bottom - top)
        if 0 <= x < 1 and 0 <= y < 1:
            yield int(y * rows) * columns + int(x * columns), sign


def words(sign: Sign, kind: str) -> list[str]:
    """A sign as text: a letter or word, a bar's height in units, a shape's colour and kind (and box, to locate it)."""
    element = sign.element
    if isinstance(element, Text):
        return [sign.letter]
    if isinstance(element, Bar):
        return [str(round((BASE - element.box[1]) / (BASE - TOP) * UNITS))]
    box = [str(round(10 * side)) for side in element.box] if kind == "locate" else []
    return [element.colour, element.kind, *box]


def type_page(page: Page, tokenizer: Tokenizer, rows: int, columns: int, slots: int, window: Box = WHOLE) -> np.ndarray:
    """[slots, rows, columns] token ids: the page as a typist would set it, `slots` tokens a cell at most, then padding.

    Of a word that the tokenizer splits, the last token stands for all: "10", the end of a box, is "0" behind a digit.

    Args:
        window: the part of the page that is set, in unit coordinates; outside of the page nothing stands.
    """
    typed = np.full((slots, rows * columns), tokenizer.pad_id, dtype=np.int64)
    used = np.zeros(rows * columns, dtype=np.int64)
    for cell, sign in cells(page, rows, columns, whole_words=True, window=window):
        for word in words(sign, page.kind):
            if used[cell] < slots:
                typed[used[cell], cell] = tokenizer.encode(word)[-1]
                used[cell] += 1
    return typed.reshape(slots, rows, columns)
