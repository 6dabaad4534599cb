"""This module sorts the signs of a page into a lattice of cells: a sign belongs to the cell that holds its middle.

Both nano backbones are pre-trained on these cells. The language model reads pages whose cells hold tokens (`type_page`)
and never sees a pixel. The vision encoder sees pixels, learns how the signs of each cell look in one plain style
(`prints.py`), and never sees a token.
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
    """A sign is one letter, digit, word, shape or bar of a page.

    Attributes:
        x, y: point that decides the cell, in unit coordinates: the middle of the sign; for a bar, its upper end.
        element: the page element that holds the sign.
        letter: the letter, digit or word of a text; "" for a shape or bar.
    """

    x: float
    y: float
    element: Element
    letter: str = ""


def signs(page: Page, *, whole_words: bool = False) -> Iterator[Sign]:
    """Yield the signs of a page: elements in raster order, letters of an element in reading order. Rules have no sign.

    Args:
        whole_words: if True, a lower-case word is one sign and `letter` holds the whole word, because it is one token.
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
            assert isinstance(element, Rule)  # a rule has no meaning


def cells(
    page: Page, rows: int, columns: int, *, whole_words: bool = False, window: Box = WHOLE
) -> Iterator[tuple[int, Sign]]:
    """Yield (cell, sign) for every sign inside the window; cells are numbered in raster order.

    Args:
        whole_words: if True, a lower-case word is one sign; see `signs`.
        window: part of the page that the lattice covers, in unit coordinates. Signs outside it are left out.
    """
    left, top, right, bottom = window
    for sign in signs(page, whole_words=whole_words):
        x, y = (min(sign.x, 0.999) - left) / (right - left), (min(sign.y, 0.999) - top) / (bottom - top)
        if 0 <= x < 1 and 0 <= y < 1:
            yield int(y * rows) * columns + int(x * columns), sign


def words(sign: Sign, kind: str) -> list[str]:
    """Describe a sign in words: the letter or word; the height of a bar in units; the colour and kind of a shape.

    On pages of kind "locate" the four sides of the shape follow, in tenths of the page.
    """
    element = sign.element
    if isinstance(element, Text):
        return [sign.letter]
    if isinstance(element, Bar):
        return [str(round((BASE - element.box[1]) / (BASE - TOP) * UNITS))]
    box = [str(round(10 * side)) for side in element.box] if kind == "locate" else []
    return [element.colour, element.kind, *box]


def type_page(page: Page, tokenizer: Tokenizer, rows: int, columns: int, slots: int, window: Box = WHOLE) -> np.ndarray:
    """Return the page as token ids [slots, rows, columns]; a cell holds at most `slots` tokens, then padding.

    A word that the tokenizer splits is represented by its last token, so "10" becomes "0". Only the right and bottom
    sides of a box can be 10, and they are never 0, so "0" stays unambiguous.

    Args:
        window: part of the page that the lattice covers, in unit coordinates. Cells outside the page are empty.
    """
    typed = np.full((slots, rows * columns), tokenizer.pad_id, dtype=np.int64)
    used = np.zeros(rows * columns, dtype=np.int64)
    for cell, sign in cells(page, rows, columns, whole_words=True, window=window):
        for word in words(sign, page.kind):
            if used[cell] < slots:
                typed[used[cell], cell] = tokenizer.encode(word)[-1]
                used[cell] += 1
    return typed.reshape(slots, rows, columns)
