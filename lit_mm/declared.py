"""What parts declare about themselves, read off their own arithmetic: no part is registered anywhere.

A tiling shows it in its plans, a layout in what it does to three small plans, a connector in its `token_grid`. What
arithmetic cannot tell is an attribute, and optional: `image_size`, `any_size` and `drop_cls` of a vision encoder;
`grids`, `order` and `reads_class_token` of a connector, named and explained as in `lit_mm.combination.Properties`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import nn

from lit_mm.combination import Properties, Thumbnail, nearest, objection
from lit_mm.errors import UserError
from lit_mm.layout import Layout
from lit_mm.tiling.plan import Size, TilePlan, View

Tiling = Callable[[int, int], TilePlan]
PROBES = ((336, 336), (672, 1008), (1008, 672), (448, 1344), (1344, 448), (61, 97))  # (height, width), pixels
SQUARES, OBLONG = ((12, 12), (24, 24)), (12, 24)  # grids of patches that 2, 3, 4 and 6 divide


def require_combination(
    vision: nn.Module, connector: nn.Module, tiling: Tiling, layout: Layout, key: str, *, bare: nn.Module
) -> None:
    """Refuse parts that do not go together.

    Args:
        connector: as the model has it; `bare`: without the vectors that were put beside it.
        key: of the recipe, for the error.
    Raises:
        UserError: why, and the nearest legal choice; or what a part itself says of the views that the tiling makes.
    """
    found = properties(vision, connector, tiling, layout, bare=bare)
    reason = objection(found)
    if reason is not None:
        raise UserError(f"{key}: {reason}. The nearest that goes: {' and '.join(nearest(found))}")
    try:
        for height, width in PROBES:
            for view in tiling(height, width).views:
                connector.token_grid(vision.token_grid(view.size))
    except UserError as error:  # a side that a patch, or what is merged, does not divide
        raise UserError(f"{key}: {error}") from error


def properties(
    vision: nn.Module, connector: nn.Module, tiling: Tiling, layout: Layout, *, bare: nn.Module
) -> Properties:
    """What the parts declare; arguments as `require_combination`."""
    plans = [tiling(*size) for size in PROBES]
    views = {tuple(view.size) for plan in plans for view in plan.views}
    grids, order = of_connector(bare)
    places, lays_out, rows = of_layout(layout)
    size = getattr(vision, "image_size", None)
    return Properties(
        view=views.pop() if len(views) == 1 else None,
        thumbnail=plans[0].thumbnail,
        takes_view=None if size is None or getattr(vision, "any_size", False) else (size, size),
        class_token=not getattr(vision, "drop_cls", True) and getattr(vision, "cls", None) is not None,
        reads_class_token=getattr(bare, "reads_class_token", False),
        grids=grids,
        order=order,
        learned=len(connector.learned()),
        places=places,
        lays_out=lays_out,
        rows=rows,
    )


def of_connector(connector: nn.Module) -> tuple[str, str]:
    """`grids` and `order` of `Properties`."""
    made = {grid: tokens for grid in (*SQUARES, OBLONG) if (tokens := tokens_of(connector, grid)) is not None}
    squares = set(SQUARES) <= made.keys()
    grids = "one" if not squares else "any" if OBLONG in made else "square"
    queries = len(set(made.values())) == 1  # as many visual tokens of every grid: they do not lie as its patches do
    return getattr(connector, "grids", grids), "queries" if queries else getattr(connector, "order", "rows")


def tokens_of(connector: nn.Module, grid: Size) -> int | None:
    """Visual tokens of a view of `grid` patches; None: it refuses them."""
    try:
        rows, columns = connector.token_grid(grid)
    except UserError:
        return None
    return rows * columns


def of_layout(layout: Layout) -> tuple[int, frozenset[Thumbnail], bool]:
    """`places`, `lays_out` and `rows` of `Properties`, from plans of 2 x 2 tiles, each of 2 x 2 visual tokens."""
    places, lays_out, rows = 0, set(), False
    for thumbnail in ("first", "last", None):
        count = 4 + (thumbnail is not None)
        plan = TilePlan((56, 56), (2, 2), (View.whole((28, 28)),) * count, thumbnail)
        runs = layout(plan, lambda size: (2, 2))
        index = np.concatenate([[np.iinfo(np.int64).min] if isinstance(run, str) else run for run in runs])
        visual = index[index >= 0]
        if sorted(visual) != list(range(4 * count)):
            continue  # loses tokens or places one twice
        lays_out.add(thumbnail)
        placed = -index[(index < 0) & (index > np.iinfo(np.int64).min)]
        places = max(places, placed.max(initial=0))
        starts = {first: int(np.flatnonzero(index == first)[0]) for first in range(0, 4 * count, 4)}
        rows |= any(list(index[at : at + 4]) != list(range(first, first + 4)) for first, at in starts.items())
    return int(places), frozenset(lays_out), rows
