"""A run of three stages that is killed 20 times, also while saving, ends bit for bit like an unbroken one."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.kills import launch_all
from tests.three_stages import CUT, assert_equal, launch, losses, weights

KILLS = 20
# Moments of rank 0: 4 in two steps, and some 20 in the checkpoint that follows. Each launch goes on from the checkpoint
# that it finds, and 20 kills must not reach the last of 30
STEPS, LATEST = 20, 60


@pytest.mark.parametrize(
    "strategy",
    [
        *(pytest.param(strategy, marks=pytest.mark.distributed) for strategy in ("ddp", CUT)),
        *(pytest.param(strategy, marks=pytest.mark.slow) for strategy in ("zero1", "zero2")),  # cut less than zero3
    ],
    ids=str,
)
def test_killed_at_random_moments_a_run_ends_bit_for_bit_the_same(tmp_path: Path, strategy: Any) -> None:
    rng = Random(str(strategy))
    options = {"strategy": strategy, "dropout": 0.1, "steps": STEPS}
    kills = [f"tick {rng.randint(1, LATEST)}" for _ in range(KILLS)]
    launch_all(
        [
            launch("unbroken", **options),
            *(launch("killed", kill=kill, **options) for kill in kills),
            launch("killed", **options),
        ],
        tmp_path,
    )
    assert losses(tmp_path / "killed") == losses(tmp_path / "unbroken")
    assert_equal(weights(tmp_path / "killed"), weights(tmp_path / "unbroken"))
