"""This module packs samples into rows under two budgets, tokens and views, and distributes rows evenly."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lit_mm.errors import UserError

if TYPE_CHECKING:
    from lit_mm.samples.length import Length

EVEN = 1.005  # swapping stops when the largest share is within half a per cent of the mean
SWAPS = 64  # most swaps; a step of 64 rows over 8 ranks takes 10 to 20


def pack(
    numbers: Sequence[int], lengths: Sequence[Length], *, tokens: int, views: int | None = None
) -> list[tuple[int, ...]]:
    """Pack samples into rows of at most `tokens` tokens and `views` views.

    Samples are placed from the longest to the shortest, each into the fullest row with enough room. Samples of equal
    length are placed in input order, and a row keeps its samples in input order, so the result is deterministic.

    Args:
        numbers: sample numbers.
        lengths: lengths of the samples, in the order of `numbers`.
        tokens: largest number of tokens in a row.
        views: largest number of views in a row; None for no limit.
    Returns:
        Sample numbers of every row.
    Raises:
        UserError: a single sample exceeds a budget.
    Source: best-fit-decreasing bin packing; windows of 1024 are within 0.5 points of packing the whole set.
    """
    limit = float("inf") if views is None else views
    sizes = [(length.tokens, length.views) for length in lengths]
    rows: list[list[int]] = []  # indices into `numbers`
    room: list[float] = []  # views left in each row
    # Each row as one integer, free tokens * base + row, which sorts by free tokens; faster than sorting pairs
    base = len(numbers) + 1
    free: list[int] = []
    for place in sorted(range(len(numbers)), key=lambda i: -sizes[i][0]):  # a stable sort
        token_count, view_count = sizes[place]
        if token_count > tokens or view_count > limit:
            raise UserError(
                f"sample {numbers[place]} has {token_count} tokens and {view_count} views, but a row holds "
                f"{tokens} tokens and {'any number of' if views is None else views} views. Raise `row_tokens` or "
                "`row_views`"
            )
        spot = bisect_left(free, token_count * base)
        while spot < len(free) and room[free[spot] % base] < view_count:
            spot += 1
        if spot == len(free):
            rows.append([place])
            room.append(limit - view_count)
            insort(free, (tokens - token_count) * base + len(rows) - 1)
            continue
        entry = free.pop(spot)
        row = entry % base
        rows[row].append(place)
        room[row] -= view_count
        insort(free, entry - token_count * base)
    return [tuple(numbers[place] for place in sorted(row)) for row in rows]


def share_out(costs: Sequence[tuple[int, int]], shares: int) -> list[list[int]]:
    """Distribute rows over shares with equal numbers of rows and nearly equal numbers of tokens and views.

    The load of a share is the larger of its two fractions, of all tokens and of all views. Rows are assigned from the
    most to the least costly, each to the share that then has the lowest load. After that, the share with the highest
    load swaps a row with another share as long as this lowers the higher of the two loads. A share keeps its rows in
    input order. The result is deterministic.

    Args:
        costs: (tokens, views) of every row.
        shares: number of shares; it must divide the number of rows.
    Returns:
        Indices into `costs`, in ascending order, for each share.
    Source: longest processing time first (Graham 1969) with equal counts, and pairwise interchange.
    """
    each = len(costs) // shares
    assert each * shares == len(costs), f"{len(costs)} rows, {shares} shares"
    if shares == 1:
        return [list(range(len(costs)))]
    all_tokens, all_views = (max(1, sum(cost[kind] for cost in costs)) for kind in (0, 1))
    scaled = [(tokens * all_views, views * all_tokens) for tokens, views in costs]  # integers, so nothing is rounded
    rows_by_share: list[list[int]] = [[] for _ in range(shares)]
    loads = [(0, 0)] * shares
    for place in sorted(range(len(costs)), key=lambda i: (-max(scaled[i]), -sum(scaled[i]), i)):
        tokens, views = scaled[place]
        best, share = None, 0
        for number, load in enumerate(loads):
            if len(rows_by_share[number]) < each:
                merit = (max(load[0] + tokens, load[1] + views), load[0] + load[1])
                if best is None or merit < best:
                    best, share = merit, number
        rows_by_share[share].append(place)
        loads[share] = (loads[share][0] + tokens, loads[share][1] + views)
    if each > 1:
        rows_by_share = _swap_rows(np.array(rows_by_share), np.array(scaled)).tolist()
    return [sorted(places) for places in rows_by_share]


def _swap_rows(shares: np.ndarray, scaled: np.ndarray) -> np.ndarray:
    """Swap rows between shares to lower the highest load.

    Args:
        shares: [S, K] indices of the rows of every share; modified in place.
        scaled: [R, 2] scaled tokens and views of every row.
    Returns:
        [S, K] indices after the swaps.
    """
    target = scaled.sum(axis=0).max() * EVEN / len(shares)
    for _ in range(SWAPS):
        loads = scaled[shares].sum(axis=1)  # [S, 2]
        fullest = int(loads.max(axis=1).argmax())
        if loads[fullest].max() <= target:
            break
        transfers = scaled[shares[fullest]][:, None, None] - scaled[shares][None]  # [K, S, K, 2] cost that would leave
        after = np.maximum((loads[fullest] - transfers).max(axis=-1), (loads[:, None] + transfers).max(axis=-1))
        after[:, fullest] = np.iinfo(np.int64).max
        place, share, other = np.unravel_index(int(after.argmin()), after.shape)
        if after[place, share, other] >= loads[fullest].max():
            break
        shares[fullest, place], shares[share, other] = shares[share, other], shares[fullest, place]
    return shares
