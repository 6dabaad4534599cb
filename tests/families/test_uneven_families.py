"""Fuyu's views of many sizes and Mini-Gemini's two encoders train on two processes with gradients as on one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.distributed.test_cog import assert_gradients
from tests.uneven_families import FAMILIES

ROOT = Path(__file__).parents[2]
RTOL = 5e-6  # fp32, of the largest gradient of each tensor: measured 7e-7 (Fuyu), 2.4e-6 (Mini-Gemini)
SMALLEST = 1e-7  # gradients below are rounding, such as those of key biases
ENGINES = ("ddp", "zero1", "zero2", "zero3")


@pytest.mark.distributed
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_unequal_ranks_are_those_of_one_process(family: str, tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.uneven_families", family, str(tmp_path), "alone", *ENGINES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    alone = torch.load(tmp_path / "alone-0.pt")
    for engine in ENGINES:
        ranks = [torch.load(tmp_path / f"{engine}-{rank}.pt") for rank in range(2)]
        steps = [pair for stage in ("steps", "accumulating") for pair in zip(*(of[stage] for of in ranks), strict=True)]
        assert {step["calls"] for pair in steps for step in pair} == {1}
        assert {(0, 5), (0, 1), (0, 0), (1, 5)} <= {tuple(sorted(step["pictures"] for step in pair)) for pair in steps}
        assert_gradients([alone], ranks, RTOL, SMALLEST)
