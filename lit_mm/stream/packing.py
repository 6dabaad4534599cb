"""Best-fit-decreasing packing under two budgets, tokens and image views; and rows shared out evenly."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lit_mm.errors import UserError

if TYPE_CHECKING:
    from lit_mm.samples.length import Length

EVEN = 1.005  # shares within half a per cent of their mean are even enough
SWAPS = 64  # at most; a step of 64 rows over 8 ranks takes 10 to 20


def pack(
    numbers: Sequence[int], lengths: Sequence[Length], *, tokens: int, views: int | None = None
) -> list[tuple[int, ...]]:
    """Group samples into rows of at most `tokens` tokens and `views` views.

    The longest sample first, each into the fullest row that still holds it. Inside a row samples keep the order in
    which they were given. Deterministic: equal lengths are taken in the given order.

    Args:
        numbers: sample numbers.
        lengths: their lengths, in the same order.
    Raises:
        UserError: a sample alone exceeds a budget.
    Source: best-fit-decreasing bin packing; windows of 1024 are within 0.5 points of packing the whole set.
    """
    limit = float("inf") if views is None else views
    sizes = [(length.tokens, length.views) for length in lengths]
    rows: list[list[int]] = []  # places in `numbers`
    room: list[float] = []  # views left, by row
    # A row with tokens left, as one integer that sorts by tokens left, then by row: quicker than pairs
    base = len(numbers) + 1
    free: list[int] = []
    for place in sorted(range(len(numbers)), key=lambda i: -sizes[i][0]):  # a stable sort
        own, view_count = sizes[place]
        if own > tokens or view_count > limit:
            raise UserError(
                f"sample {numbers[place]} has {own} tokens and {view_count} views, a row holds {tokens} "
                f"and {'any number of' if views is None else views} views. Raise `row_tokens` or `row_views`"
            )
        spot = bisect_left(free, own * base)
        while spot < len(free) and room[free[spot] % base] < view_count:
            spot += 1
        if spot == len(free):
            rows.append([place])
            room.append(limit - view_count)
            insort(free, (tokens - own) * base + len(rows) - 1)
            continue
        entry = free.pop(spot)
        row = entry % base
        rows[row].append(place)
        room[row] -= view_count
        insort(free, entry - own * base)
    return [tuple(numbers[place] for place in sorted(row)) for row in rows]


def share_out(costs: Sequence[tuple[int, int]], shares: int) -> list[list[int]]:
    """Deal rows to micro-batches, as many to each, so that none has far more tokens or views than another.

    The costliest row first, to the share that then has least of what it has most of; then the fullest share swaps a
    row with another share as long as that helps. Inside a share rows keep their order; one share gets all rows as they
    are. Deterministic.

    Args:
        costs: (tokens, views) of every row.
        shares: how many; it divides the number of rows.
    Returns:
        For each share the places of its rows in `costs`.
    Source: longest processing time first (Graham 1969) with equal counts, and pairwise interchange.
    """
    each = len(costs) // shares
    assert each * shares == len(costs), f"{len(costs)} rows, {shares} shares"
    if shares == 1:
        return [list(range(len(costs)))]
    all_tokens, all_views = (max(1, sum(cost[kind] for cost in costs)) for kind in (0, 1))
    scaled = [(tokens * all_views, views * all_tokens) for tokens, views in costs]  # whole numbers: no rounding
    dealt: list[list[int]] = [[] for _ in range(shares)]
    loads = [(0, 0)] * shares
    for place in sorted(range(len(costs)), key=lambda i: (-max(scaled[i]), -sum(scaled[i]), i)):
        tokens, views = scaled[place]
        best, share = None, 0
        for number, load in enumerate(loads):
            if len(dealt[number]) < each:
                merit = (max(load[0] + tokens, load[1] + views), load[0] + load[1])
                if best is None or merit < best:
                    best, share = merit, number
        dealt[share].append(place)
        loads[share] = (loads[share][0] + tokens, loads[share][1] + views)
    if each > 1:
        dealt = _swapped(np.array(dealt), np.array(scaled)).tolist()
    return [sorted(places) for places in dealt]


def _swapped(dealt: np.ndarray, scaled: np.ndarray) -> np.ndarray:
    """[S, K] places, changed by swaps that lower the fullest share; [R, 2] costs of all places."""
    enough = scaled.sum(axis=0).max() * EVEN / len(dealt)
    for _ in range(SWAPS):
        loads = scaled[dealt].sum(axis=1)  # [S, 2]
        fullest = int(loads.max(axis=1).argmax())
        if loads[fullest].max() <= enough:
            break
        transfers = scaled[dealt[fullest]][:, None, None] - scaled[dealt][None]  # [K, S, K, 2] what it would give away
        after = np.maximum((loads[fullest] - transfers).max(axis=-1), (loads[:, None] + transfers).max(axis=-1))
        after[:, fullest] = np.iinfo(np.int64).max
        place, share, other = np.unravel_index(int(after.argmin()), after.shape)
        if after[place, share, other] >= loads[fullest].max():
            break
        dealt[fullest, place], dealt[share, other] = dealt[share, other], dealt[fullest, place]
    return dealt
