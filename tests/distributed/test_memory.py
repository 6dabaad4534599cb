"""The memory plan equals the allocations of the engines, byte for byte."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import pytest
import torch

from lit_mm.distributed.memory import RankMemory, Spread, Weight, chains, plan_memory, weights_of
from lit_mm.errors import UserError
from lit_mm.stages.stage import Stage, Train
from tests.engines import STAGE, Engine, measure
from tests.tiny import PARTS, xcomposer2

BUCKET = 1 << 20
SMALL = {"bucket": BUCKET, "keep_whole": 100}


@dataclass(frozen=True)
class Case:
    engine: Engine
    spread: Spread


def case(
    name: str, stage: int, *, micro_batch: int = 1, reuse: int | None = None, bf16: bool = False, **zero: Any
) -> Case:
    """One engine, run and planned, with four rows per step on two ranks."""
    spread = Spread(
        stage,
        ranks=2,
        bf16=bf16,
        accumulation=2 // micro_batch,
        **({**SMALL, **zero} if stage else {}),
    )
    if reuse is not None:
        spread = replace(spread, reuse=reuse, prefetch=reuse)
    precision = "bf16-mixed" if bf16 else "32-true"
    return Case(
        Engine(name, {"stage": stage, **SMALL, **zero} if stage else {}, precision, micro_batch, 2, reuse), spread
    )


CASES = {"zero3": case("zero3", 3)}
MORE = {
    "zero2": case("zero2", 2),
    "ddp": case("ddp", 0),
    "zero1": case("zero1", 1),
    "zero1-bf16": case("zero1-bf16", 1, bf16=True),
    "zero2-bf16": case("zero2-bf16", 2, bf16=True),
    "zero2-whole": case("zero2-whole", 2, micro_batch=2),
    "zero2-bucket": case("zero2-bucket", 2, bucket=4096),
    "zero2-overlap": case("zero2-overlap", 2, bucket=4096, overlap_comm=True),
    "zero2-offload": case("zero2-offload", 2, bf16=True, offload_optimizer=True),
    "zero3-bf16": case("zero3-bf16", 3, bf16=True),
    "zero3-layers": case("zero3-layers", 3, reuse=0),
    "zero3-kept": case("zero3-kept", 3, keep_whole=600),
    "zero3-offload": case("zero3-offload", 3, bf16=True, offload_optimizer=True, offload_parameters=True),
}


def planned(spread: Spread) -> dict[str, int]:
    with torch.device("meta"):
        module = xcomposer2()
    module.begin(STAGE, total_steps=1)
    plan = plan_memory(weights_of(module), spread)
    return {name: size + getattr(plan.host, name) for name, size in asdict(plan.device).items()}


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, int]]]:
    return measure([one.engine for one in CASES.values()], tmp_path_factory.mktemp("held"))


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, int]]]:
    return measure([one.engine for one in MORE.values()], tmp_path_factory.mktemp("more"))


def assert_as_planned(ranks: list[dict[str, int]], spread: Spread) -> None:
    fullest = {name: max(rank[name] for rank in ranks) for name in ranks[0]}
    assert fullest == planned(spread)


@pytest.mark.distributed
@pytest.mark.parametrize("name", CASES)
def test_the_plan_equals_what_the_engine_holds(held, name):
    assert_as_planned(held[name], CASES[name].spread)


@pytest.mark.distributed
@pytest.mark.parametrize("name", MORE)
def test_the_plan_equals_what_the_engine_holds_in_other_settings(more, name):
    assert_as_planned(more[name], MORE[name].spread)


# --- arithmetic -----------------------------------------------------------------------------------------------------
def test_the_example_of_the_docstring():
    plan = plan_memory([Weight(10, group=0), Weight(6)], Spread(2, ranks=4, bf16=True, bucket=0))
    assert asdict(plan.device) == {
        "weights": 44,
        "masters": 16,
        "gradients": 16,
        "moments": 32,
        "gathered": 0,
        "buckets": 0,
    }


def test_modules_are_whole_together_with_those_around_them():
    weights = [Weight(5, "net"), Weight(7, "net.a.fc"), Weight(11, "net.ab"), Weight(2, "net.a")]
    assert sorted(chains(weights)) == [5, 7, 14, 16]


def test_offloading_moves_and_does_not_shrink():
    weights = [Weight(1000, "a", 0), Weight(500, "b")]
    here = plan_memory(weights, Spread(3, 2, keep_whole=10, bucket=8))
    there = plan_memory(weights, Spread(3, 2, keep_whole=10, bucket=8, offload_optimizer=True, offload_parameters=True))
    assert there.device.total + there.host.total == here.device.total and not here.host.total
    assert there.device.masters == there.device.moments == 0 < there.host.masters


def test_muon_keeps_one_moment_of_matrices():
    with torch.device("meta"):
        module = xcomposer2()
    for optimizer, factor in (("adamw", 8), ("muon", 4)):
        module.begin(Stage("s", {"language": Train(lr=1e-3, optimizer=optimizer)}), total_steps=1)
        weights = [weight for weight in weights_of(module) if weight.group is not None]
        plan: RankMemory = plan_memory(weights, Spread())
        expected = sum(w.numel * (factor if w.moments == 1 else 8) for w in weights)
        assert plan.device.moments == expected
        assert any(weight.moments == 1 for weight in weights) == (optimizer == "muon")
        for stage in (1, 2, 3):  # ranks share them, and pad each group or parameter a little
            spread = plan_memory(weights, Spread(stage, ranks=2, keep_whole=0)).device
            assert expected / 2 <= spread.moments < expected / 2 + 16 * len(weights)


def test_a_7b_model_fits_as_published():
    """In arXiv:1910.02054, figure 1, 7.5 billion parameters on 64 ranks take 120, 31.4, 16.6 and 1.9 GB. Our ZeRO has
    fp32 gradients from stage 2 on, which are two more bytes per parameter, divided by the ranks.
    """
    size, billion = 7_500_000_000, 1e9
    weights = [Weight(size, "net", 0)]
    spread = {"ranks": 64, "bf16": True, "bucket": 0}
    one, two = (plan_memory(weights, Spread(stage, **spread)).device for stage in (1, 2))
    three = plan_memory(weights, Spread(3, keep_whole=0, prefetch=0, reuse=0, **spread))
    assert one.total / billion == pytest.approx(31.4, abs=0.1)
    assert two.total / billion == pytest.approx(16.6 + 2 * 7.5 / 64, abs=0.1)
    assert (three.device.total - three.device.gathered) / billion == pytest.approx(1.9 + 2 * 7.5 / 64, abs=0.1)


@pytest.mark.parametrize(
    "wrong", [{"zero": 4}, {"ranks": 0}, {"offload_optimizer": True}, {"zero": 2, "offload_parameters": True}]
)
def test_impossible_spreads_are_refused(wrong):
    with pytest.raises(UserError):
        Spread(**wrong)


def test_every_weight_is_planned_once():
    module = xcomposer2()
    module.begin(Stage("all", {part: Train(lr=1e-3) for part in PARTS}), total_steps=1)
    assert sum(w.numel for w in weights_of(module)) == sum(p.numel() for p in module.parameters())
