"""Loss and gradients of an optimizer step are the same on any ranks x accumulation, in real processes over gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.splits import PACKED, SPLITS, name_of

RTOL = 1e-6  # fp32; of the loss, and of the largest gradient of each tensor


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each split left, by file name."""
    folder = tmp_path_factory.mktemp("splits")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-m", "tests.splits", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return {path.name: torch.load(path) for path in folder.glob("*.pt")}


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize(("ranks", "micro_batch"), SPLITS[1:])
def test_loss_and_gradients_do_not_depend_on_ranks_and_accumulation(
    kept: dict[str, dict[str, Any]], ranks: int, micro_batch: int, packed: bool
) -> None:
    whole, split = kept[name_of(*SPLITS[0], packed)], kept[name_of(ranks, micro_batch, packed)]
    assert split["tokens"] == whole["tokens"] > 0
    torch.testing.assert_close(split["loss"], whole["loss"], rtol=RTOL, atol=0)
    assert split["gradients"].keys() == whole["gradients"].keys()
    for name, expected in whole["gradients"].items():
        worst = float((split["gradients"][name] - expected).abs().max())
        assert worst <= RTOL * float(expected.abs().max()), f"{name}: {worst}"


def test_some_ranks_had_no_image_at_all(kept: dict[str, dict[str, Any]]) -> None:
    assert int(kept[name_of(4, 1, False)]["imageless"]) in (1, 2, 3)
    assert int(kept[name_of(1, 4, False)]["imageless"]) == 0
    for part in ("vision.patches.weight", "connector.mlp.0.weight", "language.lm.lm_head.weight"):
        assert kept[name_of(4, 1, False)]["gradients"][part].any()
