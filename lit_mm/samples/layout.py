"""Layouts arrange the visual tokens of a tile plan in the text. The arrangement is an index.

A layout turns a `TilePlan` into runs. A run of numbers indexes the image's vectors: `i >= 0` is its i-th visual token
(view after view, row-major inside a view), `-(k + 1)` is the k-th learned vector of the connector (newline, separator).
A run of text is a separator of one token, embedded as text, so counting needs no tokenizer. The model only computes
`bank[index]`.
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
        """Return the runs of a plan; an empty list places nothing in the text."""

    def positions(self, index: np.ndarray) -> np.ndarray:
        """Return [L] position ids of a sample from its `Sample.index`: 0, 1, 2, ... unless a layout overrides this."""
        return np.arange(len(index), dtype=np.int64)

    def routed(self, index: np.ndarray) -> np.ndarray | None:
        """Return [R] places that routed linears treat as visual, ascending; None means all places of bank vectors."""
        return None


def in_order(plan: TilePlan, token_grid: TokenGrid) -> list[Run]:
    """Place all visual tokens of all views in order, with nothing between. Source: LLaVA, XComposer2 at 224 and 490."""
    total = sum(rows * columns for rows, columns in (token_grid(view.size) for view in plan.views))
    return [np.arange(total, dtype=np.int64)]


FLAG_START, FLAG_END = -1, -2  # the connector's learned vectors, for the layout below


def between_flags(plan: TilePlan, token_grid: TokenGrid) -> list[Run]:
    """Place all visual tokens between a start and an end vector. Source: XComposer, 64 + 2 positions an image."""
    return [np.concatenate([[FLAG_START], *in_order(plan, token_grid), [FLAG_END]]).astype(np.int64)]


NEWLINE, SEPARATOR = -1, -2  # the connector's learned vectors, for the layouts below


def tokens_of(plan: TilePlan, token_grid: TokenGrid) -> list[np.ndarray]:
    """Return the [rows, columns] numbers of the visual tokens of every view."""
    grids = [token_grid(view.size) for view in plan.views]
    firsts = np.cumsum([0, *(rows * columns for rows, columns in grids)])[:-1]
    return [f + np.arange(r * c, dtype=np.int64).reshape(r, c) for f, (r, c) in zip(firsts, grids, strict=True)]


def tile_map(plan: TilePlan, token_grid: TokenGrid) -> np.ndarray:
    """Return [rows, columns] numbers of the visual tokens of all tiles, joined as the image was cut."""
    tokens = tokens_of(plan, token_grid)
    rows, columns = plan.grid
    tiles = [tokens[view] for view in plan.tiles]
    return np.block([tiles[row * columns : (row + 1) * columns] for row in range(rows)])


def with_newlines(tokens: np.ndarray) -> np.ndarray:
    """Add a newline vector after every row: [rows, columns] -> [rows * (columns + 1)]."""
    return np.pad(tokens, ((0, 0), (0, 1)), constant_values=NEWLINE).reshape(-1)


def global_then_tiles(plan: TilePlan, token_grid: TokenGrid) -> list[Run]:
    """Place the rows of the global view, a separator and the rows of all tiles; a newline vector follows each row.

    With 12 x 12 tokens a view: (rows x columns + 1) x 144 tokens, 1 separator, (rows + 1) x 12 newlines.
    Source: XComposer2-4KHD, `CLIPVisionTower.forward`.
    """
    overview = tokens_of(plan, token_grid)[0]
    separator = np.array([SEPARATOR], dtype=np.int64)
    return [np.concatenate([with_newlines(overview), separator, with_newlines(tile_map(plan, token_grid))])]


def slices_then_overview(plan: TilePlan, token_grid: TokenGrid) -> list[Run]:
    """Place slices row by row, then the overview; "," separates the slices of a row and "\\n" follows each row.

    Source: LLaVA-UHD, branch v1. The ids come from the tokenizer in use and are not fixed to Llama's.
    """
    tokens = [view.reshape(-1) for view in tokens_of(plan, token_grid)]
    columns = plan.grid[1]
    runs: list[Run] = []
    for number, view in enumerate(plan.tiles, start=1):
        runs += [tokens[view], "," if number % columns else "\n"]
    return [*runs, tokens[-1]]


def base_then_unpadded_rows(plan: TilePlan, token_grid: TokenGrid, *, rule: Rule = "official") -> list[Run]:
    """Place the view of the whole, then the map of all tiles without padding; a newline vector follows each row.

    A plan of one view becomes its tokens and one newline. Example with two rows of one tile, 2 x 2 tokens a view and no
    padding: 0 1 2 3, then 4 5 -1, 6 7 -1, 8 9 -1, 10 11 -1.

    Args:
        plan: plan of `plan_anyres`.
        token_grid: rule for the grid of visual tokens of a view.
        rule: rule that `plan_anyres` used.
    Source: LLaVA-NeXT, `mm_patch_merge_type` spatial_unpad of the released code.
    """
    base = tokens_of(plan, token_grid)[0].reshape(-1)
    if not plan.tiles:
        return [np.append(base, NEWLINE)]
    cells = tile_map(plan, token_grid)
    top, left, rows, columns = unpad(plan.image, cells.shape, rule=rule)
    return [base, with_newlines(cells[top : top + rows, left : left + columns])]


def rows_then_newlines(plan: TilePlan, token_grid: TokenGrid, *, newline: str) -> list[Run]:
    """Place the visual tokens of all views row by row, with the token of a newline after each row, the last included.

    Example with one view of 2 x 3 tokens: 0 1 2, newline, 3 4 5, newline.

    Args:
        plan: plan of any tiling.
        token_grid: rule for the grid of visual tokens of a view.
        newline: text of one token.
    Source: Fuyu-8B, transformers' FuyuProcessor.
    """
    return [run for view in tokens_of(plan, token_grid) for row in view for run in (row, newline)]


@dataclass(frozen=True)
class InOrder(Layout):
    """Places all visual tokens of all views in order, and nothing else. See `in_order`."""

    def __call__(self, plan: TilePlan, token_grid: TokenGrid) -> list[Run]:
        return in_order(plan, token_grid)


@dataclass(frozen=True)
class BetweenFlags(Layout):
    """Places all visual tokens in order between a start and an end vector. See `between_flags`."""

    def __call__(self, plan: TilePlan, token_grid: TokenGrid) -> list[Run]:
        return between_flags(plan, token_grid)


@dataclass(frozen=True)
class GlobalThenTiles(Layout):
    """Places the rows of the global view, a separator and the rows of all tiles. See `global_then_tiles`."""

    def __call__(self, plan: TilePlan, token_grid: TokenGrid) -> list[Run]:
        return global_then_tiles(plan, token_grid)


@dataclass(frozen=True)
class SlicesThenOverview(Layout):
    """Places slices with text between them, then the overview. See `slices_then_overview`."""

    def __call__(self, plan: TilePlan, token_grid: TokenGrid) -> list[Run]:
        return slices_then_overview(plan, token_grid)


@dataclass(frozen=True)
class BaseThenUnpaddedRows(Layout):
    """Places the view of the whole, then the rows of all tiles without padding. See `base_then_unpadded_rows`.

    Args:
        rule: "official" or "hf", the rule of the tiling `AnyRes`.
    """

    rule: Rule = "official"

    def __call__(self, plan: TilePlan, token_grid: TokenGrid) -> list[Run]:
        return base_then_unpadded_rows(plan, token_grid, rule=self.rule)


@dataclass(frozen=True)
class SharedPosition(Layout):
    """Places all visual tokens of an image between two flags; these tokens share one position id.

    Routed linears treat the start flag and the visual tokens as visual, the end flag as text. Example: a text token, an
    image of three visual tokens between its flags and a text token have the positions 0, 1, 2 2 2, 3, 4, and the places
    1 to 4 are routed. Neighbouring images keep separate positions, because their flags stand between them.

    Source: CogVLM (arXiv:2311.03079), `image_rope_mask` and `vision_expert_mask` of the release's utils/language.py.
    """

    def __call__(self, plan: TilePlan, token_grid: TokenGrid) -> list[Run]:
        return between_flags(plan, token_grid)

    def positions(self, index: np.ndarray) -> np.ndarray:
        """Return [L] position ids: a visual token behind a visual token has the same position, any other the next."""
        visual = index >= 0
        shared = visual[1:] & visual[:-1]
        return np.concatenate([np.zeros(min(1, len(index)), dtype=np.int64), np.cumsum(~shared)])

    def routed(self, index: np.ndarray) -> np.ndarray:
        """Return [R] places of start flags and visual tokens, ascending."""
        return np.flatnonzero((index >= 0) | (index == FLAG_START))


@dataclass(frozen=True)
class RowsThenNewlines(Layout):
    """Places the visual tokens row by row, with a text token after each row. See `rows_then_newlines`.

    Args:
        newline: text of one token, whose ordinary text embedding ends a row.
    """

    newline: str = "|NEWLINE|"

    def __call__(self, plan: TilePlan, token_grid: TokenGrid) -> list[Run]:
        return rows_then_newlines(plan, token_grid, newline=self.newline)


@dataclass(frozen=True)
class NoTokens(Layout):
    """Places nothing in the text, for a language model that reads images by cross-attention."""

    def __call__(self, plan: TilePlan, token_grid: TokenGrid) -> list[Run]:
        return []
