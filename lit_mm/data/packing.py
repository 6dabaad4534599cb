"""Best-fit-decreasing packing under two budgets: tokens and image views."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lit_mm.errors import UserError

if TYPE_CHECKING:
    from lit_mm.data.order import Length


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
    rows: list[list[int]] = []  # places in `numbers`
    room: list[int] = []  # views left, by row
    free: list[tuple[int, int]] = []  # (tokens left, row), ascending
    for place in sorted(range(len(numbers)), key=lambda i: (-lengths[i].tokens, i)):
        length = lengths[place]
        if length.tokens > tokens or length.views > limit:
            raise UserError(
                f"sample {numbers[place]} has {length.tokens} tokens and {length.views} views, a row holds {tokens} "
                f"and {'any number of' if views is None else views} views. Raise `row_tokens` or `row_views`"
            )
        spot = bisect_left(free, (length.tokens, -1))
        while spot < len(free) and room[free[spot][1]] < length.views:
            spot += 1
        if spot == len(free):
            rows.append([place])
            room.append(limit - length.views)
            insort(free, (tokens - length.tokens, len(rows) - 1))
            continue
        left, row = free.pop(spot)
        rows[row].append(place)
        room[row] -= length.views
        insort(free, (left - length.tokens, row))
    return [tuple(numbers[place] for place in sorted(row)) for row in rows]
