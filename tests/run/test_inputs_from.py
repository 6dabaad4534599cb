"""A stage whose inputs change at a step is the same, wherever it is killed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lit_mm.callbacks.metrics_csv import read_metrics
from lit_mm.checkpoints import manifest, reading
from tests.kills import Launch, launch_all, recipe_of
from tests.tiny import run_recipe, xcomposer2

KILLED = ("phases step 2",)  # on whose both sides the inputs differ
MORE = ("phases step 1", "phases step 3", "phases step 4", "phases end")
EACH = [*KILLED, *(pytest.param(name, marks=pytest.mark.distributed) for name in MORE)]


def launch(folder: Path, kills: tuple[str, ...]) -> None:
    """Run killed runs and their resumptions, with changing numbers of workers."""
    launches = []
    for number, kill in enumerate(kills):
        launches += [Launch(kill, number % 2, kill=kill, recipe="inputs"), Launch(kill, recipe="inputs")]
    launch_all(launches, folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    launch_all([Launch("unbroken", recipe="inputs")], folder)
    launch(folder, KILLED)
    return folder


@pytest.fixture(scope="module")
def more_runs(runs: Path) -> Path:
    launch(runs, MORE)
    return runs


@pytest.mark.parametrize("name", EACH)
def test_a_killed_stage_ends_the_same_bit_for_bit_on_both_sides_of_the_change(
    request: pytest.FixtureRequest, name: str
) -> None:
    runs = request.getfixturevalue("more_runs" if name in MORE else "runs")
    expected = reading.read(manifest.find(runs / "unbroken")).weights()
    weights = reading.read(manifest.find(runs / name)).weights()
    assert all(torch.equal(weights[key], tensor) for key, tensor in expected.items())


def test_the_change_is_seen_from_its_step_on(runs: Path, tmp_path: Path) -> None:
    (stage,) = recipe_of(Launch("", recipe="inputs"))
    run_recipe(xcomposer2(dropout=0.1), [replace(stage, inputs_from={})], tmp_path, micro_batch=2)
    losses, others = (
        [row["loss"] for row in read_metrics(run / "metrics.csv")] for run in (runs / "unbroken", tmp_path)
    )
    assert losses[:2] == pytest.approx(others[:2], rel=1e-6)
    assert all(loss != pytest.approx(other, rel=1e-3) for loss, other in zip(losses[2:], others[2:], strict=True))
