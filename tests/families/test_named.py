"""Functions chosen by import path."""

from __future__ import annotations

import pytest

from lit_mm.errors import UserError
from lit_mm.families.named import Function, resolve
from lit_mm.tiling.anyres import plan_anyres
from lit_mm.tiling.plan import plan_square


def test_a_function_is_called_with_its_arguments_and_its_callers() -> None:
    tiling = resolve(Function("lit_mm.tiling.plan.plan_square", {"size": 28}), given=2, key="tiling")
    assert tiling(30, 40) == plan_square(30, 40, size=28)


def test_arguments_get_the_types_of_the_signature() -> None:
    chosen = Function("lit_mm.tiling.anyres.plan_anyres", {"tile": 28, "grids": [[1, 2]], "rule": "hf"})
    assert resolve(chosen, given=2, key="tiling")(30, 40) == plan_anyres(30, 40, tile=28, grids=((1, 2),), rule="hf")


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (
            "lit_mm.samples.layout.in_ordr",
            r"^key: there is no function 'lit_mm\.samples\.layout\.in_ordr' \(module .* no attribute",
        ),
        ("nothing.at_all", r"there is no function 'nothing\.at_all' \(No module named 'nothing'\)"),
        ("in_order", r"there is no function 'in_order'"),
        ("lit_mm.samples.layout.NEWLINE", r"'lit_mm\.samples\.layout\.NEWLINE' is no function"),
        ("lit_mm.tiling.plan.TilePlan", r"is no function"),
        (Function("lit_mm.tiling.plan.plan_square", {"sise": 2}), r"^key\.arguments of .*plan_square: .*sise"),
        (Function("lit_mm.tiling.plan.plan_square", {"size": "a"}), r"Expected a <class 'int'>\. Got value: a"),
        (Function("lit_mm.tiling.plan.plan_square", {"size": 2, "height": 3}), r"height"),
        ("lit_mm.tiling.plan.plan_square", r"arguments are required: size"),
    ],
)
def test_what_cannot_be_called_is_refused(chosen: str | Function, said: str) -> None:
    with pytest.raises(UserError, match=said):
        resolve(chosen, given=2, key="key")
