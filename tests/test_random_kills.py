"""A run of three stages that is killed 20 times, also while saving, ends bit for bit like an unbroken one."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from lit_mm.callbacks.metrics_csv import read_metrics
from tests.kills import launch_all
from tests.three_stages import CUT, assert_equal, launch, losses, trained, weights

KILLS, STEPS = 20, 20  # launches that are killed; optimizer steps of each of the three stages
# (strategy, rank) -> ticks of the rank in two steps and the checkpoint that follows: 4 of micro-batches, then 2 for
# every write, fsync and rename. Rank 0 publishes, and every rank of ZeRO writes its own pieces
TICKS = {
    ("ddp", 0): 24,
    ("ddp", 1): 4,
    ("zero1", 0): 24,
    ("zero1", 1): 12,
    ("zero2", 0): 24,
    ("zero2", 1): 12,
    ("zero3", 0): 24,
    ("zero3", 1): 12,
}
STRATEGIES: dict[str, Any] = {"ddp": "ddp", "zero1": "zero1", "zero2": "zero2", "zero3": CUT}


def kills_of(strategy: str) -> list[dict[str, Any]]:
    """Arguments of the launches that are killed: each dies within five steps of its start.

    One rank or the whole job is killed in turn. The rank that is killed first is drawn, and so is the moment.
    """
    rng = Random(strategy)
    kills = []
    for number in range(KILLS):
        victim = rng.randrange(2)
        moment = rng.randint(1, TICKS[strategy, victim] * 5 // 2)
        kills.append({"kill": f"tick {moment}", "victim": victim, "alone": number % 2 == 0})
    return kills


def accounts(folder: Path) -> tuple[Any, list[tuple[Any, ...]], str]:
    """What was learnt from which samples: the ledger, the samples of every step, and the losses by source."""
    rows = read_metrics(folder / "metrics.csv")
    steps = [(row["step"], row["stage"], row["tokens"], row["samples"]) for row in rows]
    return json.loads((folder / "ledger.json").read_text()), steps, (folder / "sources.csv").read_text()


@pytest.fixture(scope="module", params=STRATEGIES)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an unbroken run and of a killed one, under one strategy."""
    folder = tmp_path_factory.mktemp(f"kills-{request.param}")
    options = {"strategy": STRATEGIES[request.param], "dropout": 0.1, "steps": STEPS}
    killed = [launch("killed", **kill, **options) for kill in kills_of(request.param)]
    launch_all([launch("unbroken", **options), *killed, launch("killed", **options)], folder)
    return folder


@pytest.mark.slow
@pytest.mark.distributed
def test_killed_at_random_moments_a_run_ends_bit_for_bit_the_same(runs: Path) -> None:
    assert losses(runs / "killed") == losses(runs / "unbroken")
    assert len(losses(runs / "unbroken")) == 3 * STEPS
    assert accounts(runs / "killed") == accounts(runs / "unbroken")
    assert_equal(weights(runs / "killed"), weights(runs / "unbroken"))
    resumed, unbroken = trained(runs / "killed"), trained(runs / "unbroken")
    assert resumed.manifest["moments"].keys() == unbroken.manifest["moments"].keys()
    for key in unbroken.manifest["moments"]:
        moment, _, parameter = key.partition("/")
        assert resumed.moment(moment, parameter).equal(unbroken.moment(moment, parameter)), key
