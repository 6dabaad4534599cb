"""Averages of weights under DDP and ZeRO, and after a kill, are those of one unbroken process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lit_mm.checkpoints import reading
from lit_mm.checkpoints.reading import Checkpoint
from tests.kills import launch_all
from tests.three_stages import CUT, assert_equal, launch, weights

NAMES = ("ddp", "zero1", "zero3")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("average")
    common = {"recipe": "average", "steps": 4, "keep": 8}
    launch_all(
        [
            launch("one process", ranks=1, **common),
            launch("killed", ranks=1, kill="pretrain step 3", **common),
            launch("killed", ranks=1, kill="finetune start", **common),
            launch("killed", ranks=1, **common),
            launch("ddp", strategy="ddp", **common),
            launch("zero1", strategy="zero1", **common),
            launch("zero3", strategy=CUT, kill="pretrain step 3", **common),
            launch("zero3", strategy=CUT, **common),
        ],
        folder,
    )
    return folder


def end_of_first(folder: Path) -> Checkpoint:
    (path,) = (folder / "checkpoints").glob("*pretrain*4*")
    return reading.read(path)


@pytest.mark.distributed
def test_a_killed_run_has_the_averages_of_an_unbroken_one(runs: Path) -> None:
    expected, resumed = end_of_first(runs / "one process"), end_of_first(runs / "killed")
    averages = {name: expected.average(name) for name in expected.manifest["weights"]}
    assert sum(average is not None for average in averages.values()) > 4
    for name, average in averages.items():
        other = resumed.average(name)
        assert (other is None) == (average is None) and (average is None or torch.equal(other, average)), name
    assert_equal(weights(runs / "killed"), weights(runs / "one process"))


@pytest.mark.distributed
@pytest.mark.parametrize("name", NAMES)
def test_averages_do_not_depend_on_the_strategy(runs: Path, name: str) -> None:
    expected, split = end_of_first(runs / "one process"), end_of_first(runs / name)
    for parameter in expected.manifest["weights"]:
        average = expected.average(parameter)
        if average is not None:
            torch.testing.assert_close(split.average(parameter), average, rtol=1e-3, atol=2e-3)
    for parameter, tensor in weights(runs / "one process").items():
        torch.testing.assert_close(weights(runs / name)[parameter], tensor, rtol=1e-2, atol=1e-2)
