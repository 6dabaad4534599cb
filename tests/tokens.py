"""Helpers for tests of tilings: rows of a golden table, and a processor that counts."""

from __future__ import annotations

from typing import Any

from lit_mm.prompts.xcomposer2 import XComposer2Prompt
from lit_mm.samples.layout import InOrder, Layout, TokenGrid
from lit_mm.samples.processor import Processor
from lit_mm.tiling.grids import FixedGrid
from lit_mm.tiling.plan import Tiling


def rows_of(table: dict[str, Any], rows: str = "rows", columns: str = "columns") -> list[dict[str, Any]]:
    """Rows of a golden table as dictionaries by column name."""
    return [dict(zip(table[columns], row, strict=True)) for row in table[rows]]


class Letters:
    """A tokenizer with one token per letter, as published ones have for "," and "\\n"."""

    pad_id = 0

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


def counter(tiling: Tiling, token_grid: TokenGrid | tuple[int, int], layout: Layout | None = None) -> Processor:
    """A processor for calls of `visual_tokens`. `token_grid` may be one (rows, columns) for all views."""
    grid = token_grid if callable(token_grid) else FixedGrid(*token_grid)
    return Processor(Letters(), XComposer2Prompt(), tiling=tiling, token_grid=grid, layout=layout or InOrder())
