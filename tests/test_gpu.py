"""The recipe of three stages runs on a CUDA device in one process: single, under DDP and under DeepSpeed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.kills import launch_all
from tests.three_stages import CUT, assert_equal, launch, losses, weights

pytestmark = pytest.mark.gpu
STRATEGIES: dict[str, Any] = {"single": "", "ddp": "ddp", "zero1": "zero1", "zero2": "zero2", "zero3": CUT}
STRATEGIES |= {"zero2 offload": "zero2_offload", "zero3 offload": CUT | {"offload_optimizer": True}}
RTOL = 1e-4  # of the loss, fp32: a GPU adds in another order than a CPU


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    jobs = [launch("one process", ranks=1)]
    for name, strategy in STRATEGIES.items():
        options = {"ranks": 1, "accelerator": "gpu", "strategy": strategy}
        jobs += [launch(name, **options), launch(f"{name} bf16", precision="bf16-mixed", **options)]
        killed = f"{name} killed"
        jobs += [launch(killed, kill="pretrain step 3", **options), launch(killed, **options)]
    launch_all(jobs, folder)
    return folder


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_loss_curve_is_that_of_a_cpu(runs: Path, name: str) -> None:
    assert losses(runs / name) == pytest.approx(losses(runs / "one process"), rel=RTOL)


@pytest.mark.parametrize("name", STRATEGIES)
def test_bf16_is_near_it(runs: Path, name: str) -> None:
    found = losses(runs / f"{name} bf16")
    assert found == pytest.approx(losses(runs / "one process"), rel=3e-2)
    assert found != losses(runs / name)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_killed_run_ends_bit_for_bit_the_same(runs: Path, name: str) -> None:
    assert losses(runs / f"{name} killed") == losses(runs / name)
    assert_equal(weights(runs / f"{name} killed"), weights(runs / name))
