"""Layouts: what a tile plan becomes in the text. Arrangement is an index, computed here and nowhere else.

A layout turns a `TilePlan` into runs. A run of numbers indexes the image's vectors: `i >= 0` is its i-th visual token
(view after view, row-major inside a view), `-(k + 1)` the k-th learned vector of the connector (newline, separator).
A run of text is a separator: one token, embedded as text (the count therefore needs no tokenizer). The model does
`bank[index]` and nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lit_mm.tiling.anyres import Rule, unpad
from lit_mm.tiling.plan import Size, TilePlan

Run = np.ndarray | str
TokenGrid = Callable[[Size], tuple[int, int]]  # encode size of a view, pixels -> (rows, columns) of visual tokens


class Layout(ABC):
    """A rule that arranges the visual tokens of a plan in the text. Subclasses are frozen dataclasses."""

    @abstractmethod
    def __call__(self, plan: TilePlan, token_grid: TokenGrid) -> list[Run]:
        """The runs that a plan becomes; an empty list places nothing."""

    def positions(self, index: np.ndarray) -> np.ndarray:
        """[L] position ids of a sample, from its `Sample.index`: 0, 1, 2, ... unless a layout says otherwise."""
        return np.arange(len(index), dtype=np.int64)

    def routed(self, index: np.ndarray) -> np.ndarray | None:
        """[R] places that routed linears treat as visual, ascending; None: those of all vectors of the bank."""
        return None


def in_order(plan: TilePlan, token_grid: TokenGrid) -> list[Run]:
    """All visual tokens of all views as they come; nothing in between. Source: LLaVA, XComposer2 at 224 and 490."""
    total = sum(rows * columns for rows, columns in (token_grid(view.size) for view in plan.views))
    return [np.arange(total, dtype=np.int64)]


FLAG_START, FLAG_END = -1, -2  # the connector's vectors, for the layout below


def between_flags(plan: TilePlan, token_grid: TokenGrid) -> list[Run]:
    """A start vector, all visual tokens as they come, an end vector. Source: XComposer, 64 + 2 positions an image."""
    return [np.concatenate([[FLAG_START], *in_order(plan, token_grid), [FLAG_END]]).astype(np.int64)]


NEWLINE, SEPARATOR = -1, -2  # the connector's learned vectors, for the layouts below


def tokens_of(plan: TilePlan, token_grid: TokenGrid) -> list[np.ndarray]:
    """Per view the [rows, columns] numbers of its visual tokens."""
    grids = [token_grid(view.size) for view in plan.views]
    firsts = np.cumsum([0, *(rows * columns for rows, columns in grids)])[:-1]
    return [f + np.arange(r * c, dtype=np.int64).reshape(r, c) for f, (r, c) in zip(firsts, grids, strict=True)]


def tile_map(plan: TilePlan, token_grid: TokenGrid) -> np.ndarray:
    """[rows, columns] numbers of the visual tokens of all tiles, put together as the image was cut."""
    tokens = tokens_of(plan, token_grid)
    rows, columns = plan.grid
    tiles = [tokens[view] for view in plan.tiles]
    return np.block([tiles[row * columns : (row + 1) * columns] for row in range(rows)])


def with_newlines(tokens: np.ndarray) -> np.ndarray:
    """[rows, columns] -> [rows * (columns + 1)], a newline vector after every row."""
    return np.pad(tokens, ((0, 0), (0, 1)), constant_values=NEWLINE).reshape(-1)


def global_then_tiles(plan: TilePlan, token_grid: TokenGrid) -> list[Run]:
    """The rows of the global view, a separator, the rows of the map of all tiles; a newline vector after each row.

    With 12 x 12 tokens a view: (rows x columns + 1) x 144 tokens, 1 separator, (rows + 1) x 12 newlines.
    Source: XComposer2-4KHD, `CLIPVisionTower.forward`.
    """
    overview = tokens_of(plan, token_grid)[0]
    separator = np.array([SEPARATOR], dtype=np.int64)
    return [np.concatenate([with_newlines(overview), separator, with_newlines(tile_map(plan, token_grid))])]


def slices_then_overview(plan: TilePlan, token_grid: TokenGrid) -> list[Run]:
    """Slices row by row, the text "," between the slices of a row and "\\n" after each row; the overview last, bare.

    Source: LLaVA-UHD, branch v1; the ids are looked up in the tokenizer at hand, not fixed to Llama's.
    """
    tokens = [view.reshape(-1) for view in tokens_of(plan, token_grid)]
    columns = plan.grid[1]
    runs: list[Run] = []
    for number, view in enumerate(plan.tiles, start=1):
        runs += [tokens[view], "," if number % columns else "\n"]
    return [*runs, tokens[-1]]


def base_then_unpadded_rows(plan: TilePlan, token_grid: TokenGrid, *, rule: Rule = "official") -> list[Run]:
    """The whole, then the map of all tiles row by row without its padding, a newline vector after every one.

    A plan of one view is its tokens and one newline. Two rows of one tile of 2 x 2 tokens, nothing padded:
    0 1 2 3, then 4 5 -1, 6 7 -1, 8 9 -1, 10 11 -1.

    Args:
        rule: as `plan_anyres` was given.
    Source: LLaVA-NeXT, `mm_patch_merge_type` spatial_unpad of the released code.
    """
    base = tokens_of(plan, token_grid)[0].reshape(-1)
    if not plan.tiles:
        return [np.append(base, NEWLINE)]
    cells = tile_map(plan, token_grid)
    top, left, rows, columns = unpad(plan.image, cells.shape, rule=rule)
    return [base, with_newlines(cells[top : top + rows, left : left + columns])]


@dataclass(frozen=True)
class InOrder(Layout):
    """All visual tokens of all views in order, and nothing else. See `in_order`."""

    def __call__(self, plan: TilePlan, token_grid: TokenGrid) -> list[Run]:
        return in_order(plan, token_grid)


@dataclass(frozen=True)
class BetweenFlags(Layout):
    """A start vector, all visual tokens in order, an end vector. See `between_flags`."""

    def __call__(self, plan: TilePlan, token_grid: TokenGrid) -> list[Run]:
        return between_flags(plan, token_grid)


@dataclass(frozen=True)
class GlobalThenTiles(Layout):
    """The rows of the global view, a separator, the rows of all tiles. See `global_then_tiles`."""

    def __call__(self, plan: TilePlan, token_grid: TokenGrid) -> list[Run]:
        return global_then_tiles(plan, token_grid)


@dataclass(frozen=True)
class SlicesThenOverview(Layout):
    """Slices with text between them, then the overview. See `slices_then_overview`."""

    def __call__(self, plan: TilePlan, token_grid: TokenGrid) -> list[Run]:
        return slices_then_overview(plan, token_grid)


@dataclass(frozen=True)
class BaseThenUnpaddedRows(Layout):
    """The view of the whole, then the rows of all tiles without padding. See `base_then_unpadded_rows`.

    Args:
        rule: "official" or "hf", the rule of the tiling `AnyRes`.
    """

    rule: Rule = "official"

    def __call__(self, plan: TilePlan, token_grid: TokenGrid) -> list[Run]:
        return base_then_unpadded_rows(plan, token_grid, rule=self.rule)
