"""A table tests which parts can be combined, and that every illegal choice has a nearest legal one."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice, product
from typing import Any

import pytest

from lit_mm.combination.legal import IN_A_FAMILY, Properties, changes, nearest, objection

EVERY = frozenset({"first", "last", None})
FIRST, LAST = frozenset({"first"}), frozenset({"last"})
# One square view of the encoder's size, an MLP, visual tokens in order
LEGAL = Properties(
    view=(28, 28),
    thumbnail=None,
    takes_view=(28, 28),
    class_token=False,
    reads_class_token=False,
    grids="any",
    order="rows",
    learned=0,
    places=0,
    lays_out=EVERY,
    rows=False,
)
ROWS = {"thumbnail": "first", "places": 1, "lays_out": FIRST, "rows": True}
SLICES = {"view": None, "takes_view": None, "thumbnail": "last", "lays_out": LAST}


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"takes_view": None},
        {"takes_view": None, "view": (28, 56)},
        {"grids": "square"},
        {"grids": "one", "order": "queries"},
        {"learned": 2},
        {"class_token": True, "reads_class_token": True},
        {"order": "columns", "grids": "square"},
        {**ROWS, "learned": 1},
        {**ROWS, "learned": 2},
        SLICES,
        {**SLICES, "order": "queries"},
        {"thumbnail": "last", "adapters": 3, "windows": 3},
        {"thumbnail": "last", "windows": 3},
    ],
)
def test_what_agrees_is_legal(changed: dict[str, Any]) -> None:
    assert objection(replace(LEGAL, **changed)) is None
    assert nearest(replace(LEGAL, **changed)) == ()


@pytest.mark.parametrize(
    ("changed", "reason", "choice"),
    [
        (
            {"view": (56, 56)},
            "the tiling makes views of 56 x 56 pixels, the vision encoder takes 28 x 28 pixels alone",
            ["the same tiling with views of 28 x 28 pixels"],
        ),
        (
            {**SLICES, "takes_view": (28, 28)},
            "the tiling makes views of sizes that follow the image, the vision encoder takes 28 x 28 pixels alone",
            ["`vision.init_args.any_size: true` (of ViT)"],
        ),
        (
            {"class_token": True},
            "the vision encoder hands over its class token, which the connector would take for a patch",
            ["`vision.init_args.drop_cls: true`"],
        ),
        (
            {**SLICES, "grids": "square"},
            "the connector takes square grids of patches alone, the tiling makes views that are not square",
            ["`connector: lit_mm.connectors.mlp.MLPProjector`"],
        ),
        (
            {**SLICES, "grids": "one", "order": "queries"},
            "the connector takes one grid of patches alone, the tiling makes views whose sizes follow the image",
            ["`connector: lit_mm.connectors.mlp.MLPProjector`"],
        ),
        (
            ROWS,
            "the layout places 1 learned vector, the connector has none",
            ["`learned: [newline]`"],
        ),
        (
            {**ROWS, "places": 2, "learned": 1},
            "the layout places 2 learned vectors, the connector has 1",
            ["`learned: [newline, separator]`"],
        ),
        (
            {**ROWS, "learned": 1, "thumbnail": "last"},
            "the layout is for plans with a view of the whole that comes first, the tiling makes a view of the whole "
            "that comes last",
            ["`layout: lit_mm.samples.SlicesThenOverview`"],
        ),
        (
            {"lays_out": LAST},
            "the layout is for plans with a view of the whole that comes last, the tiling makes no view of the whole "
            "beside the tiles",
            ["`layout: lit_mm.samples.InOrder`"],
        ),
        (
            {**ROWS, "learned": 1, "order": "queries"},
            "the layout arranges rows of visual tokens, those of the connector are queries that lie nowhere",
            ["`layout: lit_mm.samples.InOrder`"],
        ),
        (
            {**ROWS, "learned": 1, "order": "columns", "grids": "square"},
            "the layout arranges rows of visual tokens, those of the connector leave column by column",
            ["`layout: lit_mm.samples.InOrder`"],
        ),
        (
            {"class_token": True, "view": (56, 56)},
            "the tiling makes views of 56 x 56 pixels, the vision encoder takes 28 x 28 pixels alone",
            ["`vision.init_args.drop_cls: true`", "the same tiling with views of 28 x 28 pixels"],
        ),
        (
            {"thumbnail": "last", "adapters": 4, "windows": 6},
            "the vision encoder has adapters for 4 windows, the tiling cuts every image into 6",
            ["`vision_injection.init_args.windows: 6`"],
        ),
        (
            {"adapters": 1},
            "the vision encoder has adapters for 1 window, the tiling cuts none that are the same for every image",
            ["`vision_injection: null`"],
        ),
        (
            {**SLICES, "adapters": 4},
            "the vision encoder has adapters for 4 windows, the tiling cuts none that are the same for every image",
            ["`vision_injection: null`"],
        ),
    ],
)
def test_what_does_not_agree_is_refused_with_the_reason_and_the_nearest_choice(
    changed: dict[str, Any], reason: str, choice: list[str]
) -> None:
    properties = replace(LEGAL, **changed)
    assert objection(properties) == reason
    assert list(nearest(properties)) == choice


COLUMNS = {"order": "columns", "grids": "square"}
IN_FAMILIES = [
    (
        {**ROWS, "learned": 1, "order": "columns", "grids": "square"},
        ["`connector: lit_mm.connectors.mlp.MLPProjector`"],
    ),
    ({**ROWS, "places": 2}, ["`connector: lit_mm.connectors.merge.MergeMLP`"]),
    ({**SLICES, "grids": "square"}, ["`connector: lit_mm.connectors.mlp.MLPProjector`"]),
    (
        {**ROWS, "learned": 1, "order": "queries", "class_token": True},
        ["`vision.init_args.drop_cls: true`", "`connector: lit_mm.connectors.mlp.MLPProjector`"],
    ),
    ({"lays_out": LAST}, []),  # what would mend it is the family's own
]


@pytest.mark.parametrize(("changed", "choice"), IN_FAMILIES)
def test_a_family_is_offered_what_it_lets_a_recipe_choose(changed: dict[str, Any], choice: list[str]) -> None:
    properties = replace(LEGAL, **changed)
    assert objection(properties) is not None
    assert list(nearest(properties, IN_A_FAMILY)) == choice
    assert len(nearest(properties)) == 1 or choice  # where all may change, something always does


def everything() -> list[Properties]:
    """All combinations of properties."""
    layouts = [(0, EVERY, False), (1, FIRST, True), (2, FIRST, True), (0, LAST, False), (2, EVERY, False)]
    return [
        Properties(view, thumbnail, takes, token, reads, grids, order, learned, *layout, *windows)
        for view, thumbnail, takes, token, reads, grids, order, learned, layout, windows in product(
            (None, (28, 28), (28, 56)),
            ("first", "last", None),
            (None, (28, 28), (56, 56)),
            (False, True),
            (False, True),
            ("any", "square", "one"),
            ("rows", "columns", "queries"),
            (0, 1, 2),
            layouts,
            ((0, 0), (3, 0), (3, 2)),
        )
    ]


def test_there_is_always_a_nearest_choice_and_no_shorter_one() -> None:
    mixtures = everything()
    assert sum(objection(one) is None for one in mixtures) > 100
    for properties in islice(mixtures, 0, None, 53):
        choice = nearest(properties)
        assert bool(choice) == (objection(properties) is not None)
        if len(choice) > 1:
            assert all(objection(changed) for _, changed in changes(properties))
        if len(choice) == 1:
            assert objection(dict(changes(properties))[choice[0]]) is None
