"""Properties of parts are read from the parts themselves."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from torch import nn

from lit_mm.combination.declared import of_connector, of_layout, properties, require_combination
from lit_mm.connectors.downsample import DownsampleMLP
from lit_mm.connectors.flags import WithFlags
from lit_mm.connectors.grouped import GroupedProjector
from lit_mm.connectors.learned import WithLearned
from lit_mm.connectors.linear import linear_projector
from lit_mm.connectors.mlp import MLPProjector
from lit_mm.connectors.newline import WithNewline
from lit_mm.connectors.protocol import Connector
from lit_mm.errors import UserError
from lit_mm.samples import layout as layouts
from lit_mm.tiling.anyres import plan_anyres
from lit_mm.tiling.hd import plan_hd
from lit_mm.tiling.plan import TilePlan, plan_square
from lit_mm.tiling.square import plan_centre_crop, plan_pad
from lit_mm.tiling.uhd import plan_uhd, plan_uhd_arxiv
from lit_mm.tiling.windows import plan_windows
from lit_mm.vision.vit import ViT
from lit_mm.vision.window_adapters import apply_window_adapters

EVERY = {"first", "last", None}


class Fixed(nn.Module, Connector):
    """A connector that reads one grid only, such as one with a learned table of key positions."""

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid

    def token_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        if grid != self.grid:
            raise UserError(f"Fixed: reads {self.grid}, got {grid}")
        return 2, 2

    def learned(self) -> list[Any]:
        return []


class Squares(Fixed):
    def token_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        if grid[0] != grid[1]:
            raise UserError("Squares: reads squares")
        return 1, 4


def vit(**changes: Any) -> ViT:
    return ViT(**{"image_size": 28, "patch": 14, "width": 8, "layers": 1, "heads": 2} | changes)


@pytest.mark.parametrize(
    ("connector", "declared"),
    [
        (MLPProjector(8, 8), ("any", "rows")),
        (linear_projector(8, 8), ("any", "rows")),
        (DownsampleMLP(8, 8), ("square", "columns")),
        (Squares((1, 1)), ("square", "queries")),
        (Fixed((2, 2)), ("one", "rows")),
        (Fixed((12, 12)), ("one", "queries")),
        (GroupedProjector(8, 8, group=1), ("any", "rows")),
    ],
)
def test_a_connector_tells_its_grids_and_its_order(connector: nn.Module, declared: tuple[str, str]) -> None:
    assert of_connector(connector) == declared


def twice(plan: TilePlan, token_grid: object) -> list[np.ndarray]:
    return [np.array([0, 0])]


@pytest.mark.parametrize(
    ("layout", "declared"),
    [
        (layouts.in_order, (0, EVERY, False)),
        (layouts.base_then_unpadded_rows, (1, {"first"}, True)),
        (partial(layouts.base_then_unpadded_rows, rule="hf"), (1, {"first"}, True)),
        (layouts.global_then_tiles, (2, {"first"}, True)),
        (layouts.slices_then_overview, (0, {"last"}, False)),
        (twice, (0, set(), False)),
        (lambda plan, token_grid: [], (0, EVERY, False)),
    ],
)
def test_a_layout_tells_what_it_places_and_for_which_plans(layout: Any, declared: tuple[Any, ...]) -> None:
    assert of_layout(layout) == declared


@pytest.mark.parametrize(
    ("tiling", "view", "thumbnail"),
    [
        (partial(plan_square, size=28), (28, 28), None),
        (partial(plan_centre_crop, size=28), (28, 28), None),
        (partial(plan_pad, size=42), (42, 42), None),
        (partial(plan_anyres, tile=28), (28, 28), "first"),
        (partial(plan_hd, tile=28, max_tiles=6), (28, 28), "first"),
        (partial(plan_windows, size=(56, 84), window=28), (28, 28), "last"),
        (partial(plan_uhd, size=28), None, "last"),
        (partial(plan_uhd_arxiv, size=28), None, "last"),
    ],
)
def test_a_tiling_tells_the_size_of_its_views(tiling: Any, view: Any, thumbnail: str | None) -> None:
    found = properties(vit(), MLPProjector(8, 8), tiling, layouts.in_order)
    assert (found.view, found.thumbnail) == (view, thumbnail)


def test_a_vision_encoder_tells_its_size_and_its_class_token() -> None:
    tiling, connector = partial(plan_square, size=28), MLPProjector(8, 8)
    found = properties(vit(), connector, tiling, layouts.in_order)
    assert (found.takes_view, found.class_token) == ((28, 28), False)
    assert properties(vit(drop_cls=False), connector, tiling, layouts.in_order).class_token
    anything = vit()
    anything.any_size = True
    assert properties(anything, connector, tiling, layouts.in_order).takes_view is None


@pytest.mark.parametrize(
    ("tiling", "windows"),
    [
        (partial(plan_windows, size=(56, 84), window=28), 6),
        (partial(plan_windows, size=(28, 28), window=28), 1),
        (partial(plan_square, size=28), 0),  # the one view is the whole, not a window
        (partial(plan_anyres, tile=28), 0),
        (partial(plan_uhd, size=28), 0),
    ],
)
def test_windows_are_tiles_that_are_the_same_for_every_image(tiling: Any, windows: int) -> None:
    found = properties(apply_window_adapters(vit(), 3), MLPProjector(8, 8), tiling, layouts.in_order)
    assert (found.adapters, found.windows) == (3, windows)
    assert properties(vit(), MLPProjector(8, 8), tiling, layouts.in_order).adapters == 0


def test_a_connector_with_vectors_beside_it_declares_what_it_does_alone() -> None:
    tiling = partial(plan_square, size=28)
    for wrapped in (WithFlags(DownsampleMLP(8, 8), 8), WithNewline(WithFlags(DownsampleMLP(8, 8), 8), 8)):
        found = properties(vit(), wrapped, tiling, layouts.in_order)
        assert (found.grids, found.order, found.learned) == ("square", "columns", len(wrapped.learned()))


def test_vectors_beside_a_connector_count() -> None:
    bare = MLPProjector(8, 8)
    both = WithLearned(bare, ["newline", "separator"], 8)
    tiling = partial(plan_hd, tile=28, max_tiles=6)
    require_combination(vit(), both, tiling, layouts.global_then_tiles, "inputs")
    with pytest.raises(
        UserError, match=r"^inputs: the layout places 2 .* has none\. .* goes: `learned: \[newline, sep"
    ):
        require_combination(vit(), bare, tiling, layouts.global_then_tiles, "inputs")


def test_a_side_that_a_part_does_not_divide_is_refused_in_its_own_words() -> None:
    tiling, bare = partial(plan_square, size=30), MLPProjector(8, 8)
    free = vit()
    free.any_size = True
    with pytest.raises(
        UserError, match=r"^inputs: ViT: a view must be a multiple of the patch, 14 pixels, got 30 x 30"
    ):
        require_combination(free, bare, tiling, layouts.in_order, "inputs")
