"""Fields of `Inputs` that are set replace others; fields that are None do not."""

from __future__ import annotations

from typing import Any

import pytest

from lit_mm.errors import UserError
from lit_mm.prompts.plain import Plain
from lit_mm.samples.inputs import BLACK, WHITE, Inputs
from lit_mm.samples.layout import GlobalThenTiles, InOrder
from lit_mm.tiling import Hd, Pad
from tests.tiny import xcomposer2

BASE = Inputs(Pad(28), InOrder(), Plain(), 64, WHITE, {"dense": Hd(9)})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"tiling": Hd(4)}, {"tiling": Hd(4)}),
        ({"layout": GlobalThenTiles(), "max_length": 9}, {"layout": GlobalThenTiles(), "max_length": 9}),
        ({"fill": BLACK}, {"fill": BLACK}),
        ({"by_source": {}}, {"by_source": {}}),
    ],
)
def test_fields_that_are_set_replace_those_of_the_base(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    assert vars(Inputs(**changes).over(BASE)) == vars(BASE) | expected


def test_a_processor_takes_them_over() -> None:
    processor = xcomposer2().processor
    changed = processor.with_inputs(BASE)
    assert (changed.tiling, changed.layout, changed.prompt, changed.max_length) == (Pad(28), InOrder(), BASE.prompt, 64)
    assert changed.normalise.fill == WHITE and changed.normalise.mean == processor.normalise.mean
    assert changed.tiling_of("dense") == Hd(9) and changed.tiling_of("other") == Pad(28)
    assert changed.token_grid is processor.token_grid
    assert processor.with_inputs(None) is processor.with_inputs(Inputs()) is processor


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"max_length": 0}, "at least 1 token, got 0"), ({"fill": (0, 0, 300)}, r"got \[0, 0, 300\]")],
)
def test_what_is_no_length_or_no_colour_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Inputs(**wrong)
