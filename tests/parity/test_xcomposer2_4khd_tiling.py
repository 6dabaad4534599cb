"""The HD transform equals the release on every row of the table, in order of visual tokens and in the global view."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from lit_mm.errors import UserError
from lit_mm.samples.layout import NEWLINE, SEPARATOR, global_then_tiles
from lit_mm.samples.pixels import shrink
from lit_mm.tiling.hd import plan_hd
from lit_mm.tiling.plan import TilePlan, View, tiles_of
from tests.tokens import counter, rows_of


def test_resize_padding_grid_and_token_count_are_those_of_the_release(golden: Any) -> None:
    table = golden.json("xcomposer2_4khd_tiling")
    side = math.isqrt(table["tokens_per_tile"])
    for row in rows_of(table):
        tiling = partial(plan_hd, max_tiles=row["hd_num"], tile=table["tile"])
        if row["error"] is not None:
            with pytest.raises(UserError, match=f"{row['width']} x {row['height']} pixels"):
                tiling(row["height"], row["width"])
            continue
        plan = tiling(row["height"], row["width"])
        whole, *tiles = plan.views
        assert len(tiles) == len(plan.tiles) == row["grid_cols"] * row["grid_rows"]
        for view in plan.views:
            (high, wide), (top, left), canvas = view.resize, view.offset, view.canvas
            assert (wide, high) == (row["resized_w"], row["resized_h"])
            assert (left, top) == (row["pad_left"], row["pad_top"])
            assert (canvas[1] - wide - left, canvas[0] - high - top) == (row["pad_right"], row["pad_bottom"])
            assert canvas == (row["canvas_h"], row["canvas_w"])
            assert view.resample == "bilinear"
            assert view.size == (table["tile"], table["tile"])
        assert whole.box == (0, 0, *whole.canvas)
        assert not whole.antialias
        assert plan.grid == (row["grid_rows"], row["grid_cols"])
        count = counter(tiling, (side, side), global_then_tiles).visual_tokens(row["height"], row["width"])
        assert count == row["visual_tokens"]


def grid_plan(rows: int, columns: int) -> TilePlan:
    tiles = tiles_of((rows * 336, columns * 336), (rows, columns), (336, 336))
    return TilePlan((1, 1), (rows, columns), (View.whole((336, 336)), *tiles), thumbnail="first")


def patches_of(index: np.ndarray, merge: int, side: int) -> np.ndarray:
    """[L] numbers of visual tokens -> [L, merge^2] numbers of their patches, in the order of the golden file."""
    view, token = np.divmod(index, (side // merge) ** 2)
    row, column = np.divmod(token, side // merge)
    y, x = np.divmod(np.arange(merge**2), merge)
    patches = view[:, None] * side**2 + (row[:, None] * merge + y) * side + column[:, None] * merge + x
    return np.where(index[:, None] < 0, index[:, None], patches)


def test_visual_tokens_newlines_and_separator_stand_where_the_release_puts_them(golden: Any) -> None:
    counts = golden.json("xcomposer2_4khd_vision")["token_counts"]
    tensors = golden.tensors("xcomposer2_4khd_vision", "index_order.")
    for name, theirs in tensors.items():
        # one grid, "rows2_cols3", or one per picture, "two_images_1x2_then_2x1"
        grids = [tuple(map(int, pair)) for pair in re.findall(r"(?:rows)?(\d+)(?:_cols|x)(\d+)", name)]
        merge = math.isqrt(theirs.shape[1])
        num_views = sum(math.prod(grid) + 1 for grid in grids)
        side = math.isqrt((int(theirs.max()) + 1) // num_views)  # patches along a view
        views, rows = 0, []
        for grid in grids:
            (run,) = global_then_tiles(grid_plan(*grid), lambda size, n=side // merge: (n, n))
            rows.append(patches_of(np.where(run < 0, run, run + views * (side // merge) ** 2), merge, side))
            views += math.prod(grid) + 1
        np.testing.assert_array_equal(np.concatenate(rows), theirs.numpy())
        promised = counts[name] if name in counts else counts["two_images"]
        assert [len(block) for block in rows] == (promised if isinstance(promised, list) else [promised])
    assert (NEWLINE, SEPARATOR) == (-1, -2)  # the golden file's own


def test_tiles_are_encoded_row_by_row(golden: Any) -> None:
    for name, theirs in golden.tensors("xcomposer2_4khd_vision", "tile_order.").items():
        rows, columns = map(int, re.match(r"rows(\d+)_cols(\d+)", name).groups())
        plan = grid_plan(rows, columns)
        boxes = [plan.views[number].box for number in plan.tiles]
        assert [10 * (top // 336) + left // 336 for top, left, _, _ in boxes] == theirs.tolist()


def test_the_global_view_has_the_values_of_the_release(golden: Any) -> None:
    atol = golden.tolerance(golden.json("xcomposer2_4khd_vision")["tolerance"])
    tensors = golden.tensors("xcomposer2_4khd_vision", "global_view.")
    image = tensors["seed_lowres"][0].repeat_interleave(84, 1).repeat_interleave(84, 2)
    y, x = torch.arange(image.shape[1])[:, None], torch.arange(image.shape[2])[None]
    image = image + 0.01 * (y % 7 - 3) + 0.02 * (x % 5 - 2)  # as the golden file says its input is made
    ours = shrink(image, (336, 336))
    torch.testing.assert_close(ours[:, ::12, ::12], tensors["sampled"], rtol=0, atol=atol)
