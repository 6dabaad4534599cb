"""Every argument counts: another value changes the plan, the parameters, the samples or the run, or is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_mm.commands.signatures import signature_of
from lit_mm.errors import UserError
from lit_mm.language.llama import Llama
from lit_mm.language.pretrained import Pretrained
from lit_mm.layers import activations
from lit_mm.tiling import Pad
from tests.options.case import Fresh, With
from tests.options.cases import CASES, DECODER, HF, call_decoder
from tests.options.probes import Behaviour
from tests.options.test_reads import classes_of_recipes

ROOT = Path(__file__).parents[2]
SLOW = ("Blip", "Blip2", "CogAgent")  # many arguments, and seconds


def behaviour(kind: type, /, **arguments: Any) -> Behaviour:
    """What an object does; the words of the refusal if the class or its inputs refuse the arguments."""
    merged = {**CASES[kind].base, **arguments}
    torch.manual_seed(0)
    try:
        values = {name: value.make() if isinstance(value, Fresh) else value for name, value in merged.items()}
        return CASES[kind].probe(kind(**values))
    except (UserError, RuntimeError) as refusal:
        return (type(refusal).__name__, str(refusal))


def indifferent(kind: type) -> list[str]:
    """Arguments of a class whose other value makes no difference."""
    references: dict[str, Behaviour] = {}  # by the arguments of the base
    same = []
    for argument, other in CASES[kind].others.items():
        base = other.base if isinstance(other, With) else {}
        if repr(base) not in references:
            references[repr(base)] = behaviour(kind, **base)
            assert references[repr(base)][0] not in ("UserError", "RuntimeError"), references[repr(base)]
        value = other.value if isinstance(other, With) else other
        if behaviour(kind, **base | {argument: value}) == references[repr(base)]:
            same.append(argument)
    return same


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, id=kind.__name__, marks=pytest.mark.slow if kind.__name__ in SLOW else ()) for kind in CASES],
)
def test_another_value_of_every_argument_makes_a_difference(kind: type) -> None:
    assert indifferent(kind) == []


def test_an_argument_without_effect_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(CASES[Pad], others={"size": 28})  # the value of the base
    monkeypatch.setitem(CASES, Pad, case)
    assert indifferent(Pad) == ["size"]


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_every_argument_of_a_class_has_another_value_or_a_test_elsewhere(kind: type) -> None:
    case = CASES[kind]
    assert case.others.keys() | case.elsewhere.keys() == signature_of(kind).arguments.keys()
    for place in case.elsewhere.values():
        file, _, name = place.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text(), place


def test_every_class_that_a_recipe_names_is_in_the_table() -> None:
    kinds = {kind for kind in classes_of_recipes() if signature_of(kind).arguments}
    assert {kind.__qualname__ for kind in kinds - CASES.keys()} == set()


@pytest.mark.slow
def test_the_layers_of_a_model_of_transformers_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[torch.fx.GraphModule] = []
    monkeypatch.setattr(activations, "BACKEND", lambda graph, inputs: graphs.append(graph) or graph.forward)
    activations.compile_forward.cache_clear()
    torch._dynamo.reset()
    for compile, count in ((False, 0), (True, 1)):
        call_decoder(Pretrained(HF, compile=compile).train())
        assert len(graphs) == count
    activations.compile_forward.cache_clear()
    torch._dynamo.reset()


def test_the_longest_sample_is_information_in_the_config_of_a_llama() -> None:
    """No computation reads it: rotary positions have no table."""
    assert Llama(**DECODER, max_positions=77).lm.config.max_position_embeddings == 77
