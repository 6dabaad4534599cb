"""AnyRes: grid, tiles and unpadding; the hf rule equals transformers on random sizes."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

from lit_mm.errors import UserError
from lit_mm.samples.layout import base_then_unpadded_rows
from lit_mm.samples.pixels import Normalise, cut_views
from lit_mm.samples.processor import CLIP_MEAN, CLIP_STD
from lit_mm.tiling.anyres import GRIDS, plan_anyres, unpad

PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]  # the released list


def random_sizes(count: int) -> list[tuple[int, int]]:
    """Draw sizes up to 2000 pixels uniformly, and small sizes, for which divisions often have no remainder."""
    rng = Random(0)
    return [(rng.randint(1, top), rng.randint(1, top)) for top in (40, 400, 2000) for _ in range(count // 3)]


def test_the_hf_rule_picks_the_grid_and_cells_of_transformers():
    for size in random_sizes(3000):
        plan = plan_anyres(*size, rule="hf")
        assert plan.grid == get_anyres_image_grid_shape(size, PINPOINTS, 336)
        cells = plan.grid[0] * 24, plan.grid[1] * 24
        numbered = torch.arange(cells[0] * cells[1]).view(1, *cells)
        top, left, rows, columns = unpad(size, cells, rule="hf")
        ours = numbered[:, top : top + rows, left : left + columns]
        assert torch.equal(ours, unpad_image(numbered, size))


def test_the_official_rule_differs_where_a_division_ends_below_a_whole_number():
    assert unpad((198, 176), (48, 24)) == (11, 0, 26, 24)
    assert unpad((198, 176), (48, 24), rule="hf") == (10, 0, 28, 24)
    assert unpad((200, 176), (48, 24)) == unpad((200, 176), (48, 24), rule="hf")


@pytest.mark.parametrize("size", [(30, 45), (100, 30), (57, 58), (28, 56), (9, 90)])
def test_the_views_have_the_pixels_of_transformers_processor(size):
    tile = 28
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": tile},
        crop_size={"height": tile, "width": tile},
        image_grid_pinpoints=[[a * tile // 336, b * tile // 336] for a, b in PINPOINTS],
    )
    theirs = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
    normalise = Normalise(CLIP_MEAN, CLIP_STD, fill=(0, 0, 0), backend="pillow")
    plan = plan_anyres(*size, tile=tile, rule="hf")
    ours = torch.stack(cut_views(torch.from_numpy(pixels).permute(2, 0, 1), plan.views, normalise))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_small_image_gets_two_rows_and_by_the_hf_rule_two_columns():
    assert plan_anyres(300, 300).grid == (2, 1)
    assert plan_anyres(300, 300, rule="hf").grid == (1, 2)


def test_the_whole_comes_first_and_is_stretched():
    plan = plan_anyres(500, 900)
    assert plan.thumbnail == "first"
    assert plan.views[0].resize == (336, 336)
    assert list(plan.tiles) == [*range(1, len(plan.views))]
    assert plan.image == (500, 900)


def test_a_very_long_image_keeps_only_newlines_or_nothing_of_its_tiles():
    grid = lambda size: (24, 24)  # noqa: E731
    base, tiles = base_then_unpadded_rows(plan_anyres(1000, 1), grid)
    assert (len(base), tiles.tolist()) == (576, [-1] * 72)
    base, tiles = base_then_unpadded_rows(plan_anyres(1, 1000), grid)
    assert (len(base), len(tiles)) == (576, 0)


def test_no_image_and_no_grids_are_refused():
    with pytest.raises(UserError, match="plan_anyres needs a non-empty image"):
        plan_anyres(0, 4)
    with pytest.raises(UserError, match="at least one grid"):
        plan_anyres(4, 4, grids=[])


def test_the_default_grids_are_the_released_list_read_width_first():
    assert [list(pair) for pair in GRIDS] == [[high // 336, wide // 336] for wide, high in PINPOINTS]
