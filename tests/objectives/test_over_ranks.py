"""Every objective of pairs says what it depends on, in its docstring, in `describe` and in docs/objectives.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_mm.module import MultimodalModule
from lit_mm.objectives.objective import Comparing
from tests.tiny_blip import blip
from tests.tiny_blip2 import blip2

DOCS = Path(__file__).parents[2] / "docs" / "objectives.md"
FAMILIES = {"BLIP": blip, "BLIP-2": blip2}
SPLIT_FREE = {"lm", "next_token"}  # objectives that compare no samples


@pytest.mark.parametrize("family", FAMILIES)
def test_every_objective_that_compares_samples_says_on_what_it_depends(family: str) -> None:
    module: MultimodalModule = FAMILIES[family]()
    compares = {name: part for name, part in module.objectives.items() if isinstance(part, Comparing)}
    assert module.objectives.keys() - compares.keys() <= SPLIT_FREE
    for name, objective in compares.items():
        assert "600 pairs = 75 x 8" in objective.depends_on(module.network, 75, 8), name
        assert "rank" in (type(objective).__doc__ or ""), name


def test_the_table_of_the_docs_has_a_row_for_every_objective() -> None:
    rows = {row.split("|")[1].strip() for row in DOCS.read_text().splitlines() if row.startswith("|")}
    expected = {
        f"`{name}`" if name == "next_token" else f"{family} `{name}`"
        for family, build in FAMILIES.items()
        for name in build().objectives
    }
    assert expected <= rows, f"docs/objectives.md lacks {sorted(expected - rows)}"
