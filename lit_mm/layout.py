"""Layouts: what a tile plan becomes in the text. Arrangement is an index, computed here and nowhere else.

A layout turns a `TilePlan` into runs. A run of numbers indexes the image's vectors: `i >= 0` is its i-th visual token
(view after view, row-major inside a view), `-(k + 1)` the k-th learned vector of the connector (newline, separator).
A run of text is tokenised and embedded as text. The model does `bank[index]` and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from lit_mm.tiling.plan import Size, TilePlan

Run = np.ndarray | str
TokenGrid = Callable[[Size], tuple[int, int]]  # encode size of a view, pixels -> (rows, columns) of visual tokens


class Layout(Protocol):
    def __call__(self, plan: TilePlan, token_grid: TokenGrid) -> list[Run]: ...


def in_order(plan: TilePlan, token_grid: TokenGrid) -> list[Run]:
    """All visual tokens of all views as they come; nothing in between. Source: LLaVA, XComposer2 at 224 and 490."""
    total = sum(rows * columns for rows, columns in (token_grid(view.size) for view in plan.views))
    return [np.arange(total, dtype=np.int64)]
