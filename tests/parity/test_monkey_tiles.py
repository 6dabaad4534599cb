"""Monkey's windows equal the release on every row of the tables, and the global view in its pixels."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from lit_mm.samples.pixels import Normalise, cut_views
from lit_mm.tiling.windows import plan_windows
from tests.tokens import counter, rows_of

WINDOW, TOKENS = 448, (16, 16)  # the released encoder; the table gives no other


def test_windows_and_token_count_are_those_of_the_release(golden: Any) -> None:
    table = golden.json("monkey_tiles")
    for row in rows_of(table):
        tiling = partial(plan_windows, size=(row["height"], row["width"]), window=WINDOW)
        plan = tiling(123, 45)  # whatever the image's own size
        boxes = [plan.views[number].box for number in plan.tiles]
        assert plan.grid == (row["rows"], row["cols"])
        assert [[left, top] for top, left, _, _ in boxes] == row["window_top_left_xy"]
        assert all(box[2:] == (WINDOW, WINDOW) for box in boxes)
        assert counter(tiling, TOKENS).visual_tokens(123, 45) == row["visual_tokens"]


def test_overlapping_windows_are_those_of_the_release(golden: Any) -> None:
    for row in rows_of(golden.json("monkey_tiles"), "overlap_rows", "overlap_columns"):
        plan = plan_windows(1, 1, size=(row["height"], row["width"]), window=row["window"], stride=row["stride"])
        assert plan.grid == (row["rows"], row["cols"])
        assert [list(plan.views[n].box[1::-1]) for n in plan.tiles] == row["window_top_left_xy"]


def test_the_global_view_has_the_pixels_of_the_release(golden: Any) -> None:
    """The stored image holds int8 / 32; as uint8 this is 128 more, so mean and deviation are 128 and 32 of 255."""
    atol = golden.tolerance(golden.json("monkey_tiles")["lora_file"]["tolerance"])
    tensors = golden.tensors("monkey_lora")
    image = (tensors["image_int8"][0].int() + 128).to(torch.uint8)
    theirs = tensors["global_resized"][0]
    side = theirs.shape[-1]
    plan = plan_windows(*image.shape[1:], size=tuple(image.shape[1:]), window=side)
    views = cut_views(image, plan.views, Normalise((128 / 255,) * 3, (32 / 255,) * 3))
    torch.testing.assert_close(views[-1], theirs, rtol=0, atol=atol)
    for number, view in enumerate(views[:-1]):
        r, c = divmod(number, plan.grid[1])
        window = tensors["image_int8"][0, :, r * side : (r + 1) * side, c * side : (c + 1) * side] / 32
        torch.testing.assert_close(view, window, rtol=0, atol=atol)


@pytest.mark.parametrize("share", [0.5, 2])
def test_antialiasing_would_be_seen(golden: Any, share: float) -> None:
    """The tolerance of the test above separates the resize of the release from an antialiased one."""
    tensors = golden.tensors("monkey_lora")
    image = tensors["image_int8"].float() / 32 * share
    side = tensors["global_resized"].shape[-2:]
    smooth = torch.nn.functional.interpolate(image, size=side, mode="bicubic", antialias=True)
    assert (smooth - tensors["global_resized"] * share).abs().max() > 0.01
