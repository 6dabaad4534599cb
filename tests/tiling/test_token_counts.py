"""The count from (height, width) equals the number of visual tokens built from pixels, for every tiling."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from benchmarks.token_counts import POLICIES, check, random_size
from lit_mm.samples.layout import in_order


@pytest.mark.parametrize("name", POLICIES)
def test_the_count_from_the_size_is_what_is_built(name: str) -> None:
    rng = Random(1)
    for _ in range(40):
        check(POLICIES[name], random_size(rng))


def test_a_count_that_is_off_by_one_is_noticed() -> None:
    square = POLICIES["square"]
    with pytest.raises(AssertionError, match="a visual token is left out"):
        check(replace(square, layout=lambda plan, grid: [in_order(plan, grid)[0][:-1]]), (30, 40))
    with pytest.raises(AssertionError, match="used twice"):
        check(replace(square, layout=lambda plan, grid: in_order(plan, grid) * 2), (30, 40))
