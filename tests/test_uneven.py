"""Ranks with unequal batches train under every engine, call their encoder equally often, and get equal gradients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_mm.errors import UserError
from lit_mm.samples.batch import Batch
from tests.preloaded import run_program
from tests.tiny import Documents, xcomposer2
from tests.uneven import ENGINES, EVERYTHING

RTOL = 2e-6  # fp32; of the loss, and of the largest gradient of each tensor: measured 1.4e-6 (ZeRO-3), 6e-7 (DDP)
CORE = ("alone", "ddp", "zero3")

Kept = dict[str, list[dict[str, Any]]]


def trained(folder: Path, engines: tuple[str, ...]) -> Kept:
    """Results of every rank of every engine."""
    done = run_program(["-m", "tests.uneven", str(folder), *engines], timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return {engine: [torch.load(file) for file in sorted(folder.glob(f"{engine}-*.pt"))] for engine in engines}


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return trained(tmp_path_factory.mktemp("uneven"), CORE)


@pytest.fixture(scope="module")
def rest(core: Kept, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    engines = tuple(engine for engine in ENGINES if engine not in CORE)
    return {"alone": core["alone"]} | trained(tmp_path_factory.mktemp("rest"), engines)


def assert_like_one_process(kept: Kept, engine: str, stage: str = "steps", accumulation: int = 1) -> None:
    (alone,) = kept["alone"]
    for number, expected in enumerate(alone[stage]):
        first = number * accumulation
        ours = [rank[stage][first : first + accumulation] for rank in kept[engine]]
        assert {len(turns) for turns in ours} == {accumulation}
        loss = sum(one["loss"] for turns in ours for one in turns)
        torch.testing.assert_close(loss, expected["loss"], rtol=RTOL, atol=0)
        for name, gradient in expected["gradients"].items():
            for *_, one in ours:  # the same on every rank, when the last micro-batch is over
                worst = float((one["gradients"][name] - gradient).abs().max())
                assert worst <= RTOL * float(gradient.abs().max()), f"step {number}, {name}: {worst}"


@pytest.mark.parametrize("engine", CORE[1:])
def test_gradients_are_those_of_one_process(core, engine):
    assert_like_one_process(core, engine)


@pytest.mark.parametrize("engine", CORE[1:])
def test_gradients_of_accumulated_micro_batches_are_those_of_one_forward(core, engine):
    assert [len(rank["accumulating"]) for rank in core[engine]] == [6, 6]
    assert_like_one_process(core, engine, "accumulating", accumulation=2)


@pytest.mark.distributed
@pytest.mark.parametrize("engine", ["zero1", "zero2"])
def test_gradients_are_those_of_one_process_here_too(rest, engine):
    assert_like_one_process(rest, engine)
    assert_like_one_process(rest, engine, "accumulating", accumulation=2)


def test_ranks_had_none_against_five_one_against_five_and_text_only(core):
    ranks = [[step["pictures"] for step in rank["steps"]] for rank in core["zero3"]]
    assert {(0, 5), (0, 1), (0, 0), (1, 5)} <= {tuple(sorted(step)) for step in zip(*ranks, strict=True)}


def test_every_rank_calls_its_encoder_once_whatever_it_has_to_see(core):
    steps = [step for kept in core.values() for rank in kept for step in rank["steps"] + rank["accumulating"]]
    assert {step["calls"] for step in steps} == {1}


def test_an_engine_leaves_nothing_on_the_modules_that_the_next_one_would_call(core):
    assert [rank["left"] for kept in core.values() for rank in kept] == [[]] * 5


def test_ranks_may_stop_answering_at_different_tokens(core):
    goes_on, stops = (rank["answers"][0] for rank in core["zero3"])
    assert stops == "" and len(goes_on) > 0


def test_views_of_several_shapes_on_several_ranks_are_refused_with_the_reason():
    module, data = xcomposer2(), Documents()
    data.begin(module.processor, EVERYTHING, seed=0)
    batch: Batch = data.rows[next(iter(data.stream))]
    views = replace(batch.views, groups=(batch.views.groups[0], torch.zeros(1, 3, 28, 56)))
    both = replace(batch, views=views)
    module._trainer = SimpleNamespace(world_size=1)
    module.check_calls(both)
    module._trainer = SimpleNamespace(world_size=2)
    module.check_calls(batch)
    with pytest.raises(UserError, match=r"shapes \[\(28, 28\), \(28, 56\)\].*one at a time"):
        module.training_step(both, 0)
