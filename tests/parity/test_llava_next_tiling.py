"""AnyRes equals the authors' code and transformers' on every row of the tables."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from lit_mm.samples.layout import base_then_unpadded_rows
from lit_mm.tiling.anyres import Rule, plan_anyres, unpad
from lit_mm.tiling.plan import TilePlan
from tests.tokens import counter, rows_of

RULES = {"official": "", "hf": "hf_"}  # rule -> what its columns begin with


@pytest.fixture
def table(golden: Any) -> dict[str, Any]:
    return golden.json("llava_next_tiling")["anyres_1_6"]


def tiling_of(table: dict[str, Any], rule: Rule = "official") -> Callable[[int, int], TilePlan]:
    tile = table["tile"]
    grids = [(high // tile, wide // tile) for wide, high in table["grid_pinpoints_w_h"]]
    return partial(plan_anyres, tile=tile, grids=grids, rule=rule)


def test_tiles_lie_where_the_release_puts_them(table: dict[str, Any]) -> None:
    tiling, tile = tiling_of(table), table["tile"]
    for row in rows_of(table):
        plan = tiling(row["h"], row["w"])
        assert len(plan.views) == row["n_tiles_incl_base"]
        assert plan.views[0].resize == plan.views[0].size == (tile, tile)
        for number, view in enumerate(plan.views[1:]):
            top, left = (place * tile for place in divmod(number, row["grid_w"]))
            assert view.canvas == (row["best_h"], row["best_w"])
            assert view.resize == (row["resized_h"], row["resized_w"])
            assert view.offset == (row["paste_y"], row["paste_x"])
            assert view.box == (top, left, tile, tile)
            assert view.size == (tile, tile)


@pytest.mark.parametrize("rule", RULES)
def test_grid_unpadding_and_token_count_follow_the_rule(table: dict[str, Any], rule: Rule) -> None:
    tiling, side = tiling_of(table, rule), table["tile"] // table["patch"]
    assert side**2 == table["tokens_per_tile"]
    processor = counter(tiling, (side, side), partial(base_then_unpadded_rows, rule=rule))
    for row in rows_of(table):
        theirs = {key: row[RULES[rule] + key] for key in ("grid_h", "grid_w", "unpad_h", "unpad_w", "n_tokens")}
        plan = tiling(row["h"], row["w"])
        _, _, *cells = unpad(plan.image, (plan.grid[0] * side, plan.grid[1] * side), rule=rule)
        ours = dict(zip(theirs, (*plan.grid, *cells, processor.visual_tokens(row["h"], row["w"])), strict=True))
        assert ours == theirs, f"{row['w']} x {row['h']}"


def test_the_larger_grids_of_the_siglip_variant_are_unpadded_alike(golden: Any) -> None:
    """The last step of the variant, which shrinks the feature map by interpolation, is left out."""
    table = golden.json("llava_next_tiling")["anyres_max_9"]
    side = math.isqrt(table["tokens_per_tile"])
    first, last = (tuple(map(int, pair)) for pair in re.findall(r"\((\d+)x(\d+)\)", table["grid_pinpoints"]))
    grids = [(r, c) for c in range(first[0], last[0] + 1) for r in range(first[1], last[1] + 1)]
    for row in rows_of(table):
        plan = plan_anyres(row["h"], row["w"], tile=table["tile"], grids=grids)
        _, _, *cells = unpad(plan.image, (plan.grid[0] * side, plan.grid[1] * side))
        assert plan.grid == (row["grid_h"], row["grid_w"])
        assert cells == [row["unpad_h"], row["unpad_w"]]
        assert len(plan.views) == row["n_tiles_incl_base"]
