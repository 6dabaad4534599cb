"""Properties of the views of a tile plan."""

from __future__ import annotations

from lit_mm.tiling.plan import TilePlan, View, plan_square


def test_every_view_says_which_tile_it_is() -> None:
    view = View.whole((14, 14))
    numbers = {
        thumbnail: TilePlan((9, 9), (1, 2), (view,) * 3, thumbnail=thumbnail).tile_numbers
        for thumbnail in ("first", "last")
    }
    assert numbers == {"first": [-1, 0, 1], "last": [0, 1, -1]}
    assert plan_square(9, 9, size=14).tile_numbers == [0]
