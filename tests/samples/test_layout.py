"""Layouts turn small plans into the expected runs."""

from __future__ import annotations

import numpy as np

from lit_mm.samples.layout import (
    FLAG_END,
    FLAG_START,
    SharedPosition,
    base_then_unpadded_rows,
    between_flags,
    global_then_tiles,
    in_order,
    slices_then_overview,
    tile_map,
    with_newlines,
)
from lit_mm.samples.processor import TEXT
from lit_mm.tiling.plan import Size, TilePlan, View, tiles_of

SIDE = 28


def by_patch(size: Size) -> tuple[int, int]:
    """A token grid with two visual tokens along a tile."""
    return size[0] // 14, size[1] // 14


def plan(rows: int, columns: int, thumbnail: str, image: Size | None = None) -> TilePlan:
    tiles = tiles_of((rows * SIDE, columns * SIDE), (rows, columns), (SIDE, SIDE))
    whole = (View.whole((SIDE, SIDE)),)
    views = whole + tiles if thumbnail == "first" else tiles + whole
    return TilePlan(image or (rows * SIDE, columns * SIDE), (rows, columns), views, thumbnail)


def flat(runs: list) -> list:
    """Join numbers and texts into one row."""
    return [item for run in runs for item in ([run] if isinstance(run, str) else run.tolist())]


def test_in_order_is_view_after_view():
    assert flat(in_order(plan(1, 2, "first"), by_patch)) == list(range(12))


def test_flags_stand_around_all_visual_tokens():
    (run,) = between_flags(plan(1, 1, "none"), by_patch)
    assert run.tolist() == [-1, *range(8), -2] and run.dtype == np.int64


def test_the_map_of_tiles_reads_across_tiles():
    expected = [[4, 5, 8, 9], [6, 7, 10, 11], [12, 13, 16, 17], [14, 15, 18, 19]]
    assert tile_map(plan(2, 2, "first"), by_patch).tolist() == expected
    last = tile_map(plan(2, 2, "last"), by_patch)
    np.testing.assert_array_equal(last, np.array(expected) - 4)


def test_a_newline_ends_every_row():
    assert with_newlines(np.array([[3, 4], [5, 6]])).tolist() == [3, 4, -1, 5, 6, -1]


def test_the_global_view_comes_before_separator_and_tiles():
    assert flat(global_then_tiles(plan(1, 2, "first"), by_patch)) == [
        *(0, 1, -1, 2, 3, -1, -2),
        *(4, 5, 8, 9, -1, 6, 7, 10, 11, -1),
    ]


def test_slices_are_told_apart_by_text_and_the_overview_is_last():
    runs = flat(slices_then_overview(plan(2, 2, "last"), by_patch))
    assert runs == [0, 1, 2, 3, ",", 4, 5, 6, 7, "\n", 8, 9, 10, 11, ",", 12, 13, 14, 15, "\n", 16, 17, 18, 19]


def test_without_slices_only_the_overview_is_left():
    overview = TilePlan((SIDE, SIDE), (0, 0), (View.whole((SIDE, SIDE)),), "last")
    assert flat(slices_then_overview(overview, by_patch)) == [0, 1, 2, 3]


def test_padding_of_the_grid_is_left_out_of_the_rows():
    half = plan(2, 1, "first", image=(SIDE, SIDE))  # the image covers the middle half of two rows of one tile
    assert flat(base_then_unpadded_rows(half, by_patch)) == [0, 1, 2, 3, 6, 7, -1, 8, 9, -1]


def test_a_plan_of_one_view_is_its_tokens_and_one_newline():
    whole = TilePlan((9, 9), (0, 0), (View.whole((SIDE, SIDE)),), "first")
    assert flat(base_then_unpadded_rows(whole, by_patch)) == [0, 1, 2, 3, -1]


def test_patches_of_an_image_share_a_position_and_its_end_flag_is_text() -> None:
    layout, end = SharedPosition(), FLAG_END
    for index, positions, routed in (
        ([TEXT, FLAG_START, 0, 1, 2, end, TEXT], [0, 1, 2, 2, 2, 3, 4], [1, 2, 3, 4]),
        ([TEXT, FLAG_START, 0, 1, end, FLAG_START, 2, 3, end], [0, 1, 2, 2, 3, 4, 5, 5, 6], [1, 2, 3, 5, 6, 7]),
        ([TEXT, TEXT], [0, 1], []),
        ([], [], []),
    ):
        numbers = np.array(index, dtype=np.int64)
        assert layout.positions(numbers).tolist() == positions
        assert layout.routed(numbers).tolist() == routed
