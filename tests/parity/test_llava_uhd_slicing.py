"""LLaVA-UHD's slices equal both releases on every row of the tables."""

from __future__ import annotations

from typing import Any

from lit_mm.samples.layout import slices_then_overview
from lit_mm.tiling.plan import TilePlan
from lit_mm.tiling.uhd import plan_uhd, plan_uhd_arxiv
from tests.tokens import counter, rows_of

PATCH = 14  # CLIP ViT-L/14: the tables give sizes in pixels and in patches, this is their quotient
TOKENS = (12, 12)  # queries of the resampler, whatever the view's size


def cut(plan: TilePlan) -> dict[str, int]:
    """Write a plan with the terms of the table."""
    overview = plan.views[-1].size
    slices = [plan.views[number] for number in plan.tiles]
    assert len(plan.views) == len(slices) + 1
    assert len({view.size for view in slices}) <= 1
    (high, wide), canvas = (slices[0].size, slices[0].canvas) if slices else ((0, 0), (0, 0))
    return {
        "grid_y": plan.grid[0],
        "grid_x": plan.grid[1],
        "n_slices": len(slices),
        "overview_h": overview[0],
        "overview_w": overview[1],
        "refine_h": canvas[0],
        "refine_w": canvas[1],
        "slice_h": high,
        "slice_w": wide,
        "overview_ph": overview[0] // PATCH,
        "overview_pw": overview[1] // PATCH,
        "slice_ph": high // PATCH,
        "slice_pw": wide // PATCH,
    }


def test_slices_separators_and_token_count_are_those_of_the_release(golden: Any) -> None:
    processor = counter(plan_uhd, TOKENS, slices_then_overview)
    for row in rows_of(golden.json("llava_uhd_slicing")["released_v1"]):
        plan = plan_uhd(row["h"], row["w"])
        ours = cut(plan)
        texts = [run for run in slices_then_overview(plan, lambda size: TOKENS) if isinstance(run, str)]
        ours |= {"n_comma": texts.count(","), "n_newline": texts.count("\n")}
        ours["n_tokens"] = processor.visual_tokens(row["h"], row["w"])
        theirs = {key: row[key] for key in ours}
        assert ours == theirs, f"{row['w']} x {row['h']}"
        assert row.keys() - ours.keys() == {"w", "h", "multiple"}


def test_slices_tile_the_resized_image_without_gap_or_overlap(golden: Any) -> None:
    for row in rows_of(golden.json("llava_uhd_slicing")["released_v1"]):
        plan = plan_uhd(row["h"], row["w"])
        for number in plan.tiles:
            view, (r, c) = plan.views[number], divmod(number, row["grid_x"])
            assert view.resize == view.canvas
            assert view.box == (r * row["slice_h"], c * row["slice_w"], row["slice_h"], row["slice_w"])


def test_the_first_release_is_cut_as_its_table_says(golden: Any) -> None:
    for row in rows_of(golden.json("llava_uhd_slicing")["arxiv_release_march_2024"]):
        plan = plan_uhd_arxiv(row["h"], row["w"])
        ours = cut(plan)
        views = len(plan.views)
        if not plan.tiles:  # the release calls the overview the one slice of a 1 x 1 grid
            ours |= {"grid_y": 1, "grid_x": 1, "n_slices": 1}
            ours |= {"slice_ph": ours["overview_ph"], "slice_pw": ours["overview_pw"]}
        for key in ("grid_x", "grid_y", "n_slices", "slice_ph", "slice_pw", "overview_ph", "overview_pw"):
            assert ours[key] == row[key], f"{key} of {row['w']} x {row['h']}"
        assert 64 * views == row["visual_tokens"]
