"""Runs of three stages on two processes, and their results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_mm.callbacks.metrics_csv import read_metrics
from lit_mm.checkpoints import manifest, reading
from lit_mm.checkpoints.reading import Checkpoint
from tests.kills import Launch

RATES = ("lr_connector", "lr_language", "lr_partial_lora", "lr_vision")
RTOL = 1e-5  # of the loss, fp32: the order in which ranks are summed up
# Everything of ZeRO-3 is cut up, where by default parameters as small as these stay whole
CUT = {"stage": 3, "keep_whole": 0}


def launch(folder: str, **options: Any) -> Launch:
    given = {"recipe": "three", "steps": 3, "lr": 1e-3, "dropout": 0.0, "ranks": 2} | options
    return Launch(folder, **given)


def losses(folder: Path) -> list[float]:
    rows = read_metrics(folder / "metrics.csv")
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    for row, other in zip(rows, read_metrics(folder.parent / "one process" / "metrics.csv"), strict=False):
        assert [row[rate] for rate in RATES] == [other[rate] for rate in RATES]
    return [row["loss"] for row in rows]


def trained(folder: Path) -> Checkpoint:
    saved = reading.read(manifest.find(folder))
    saved.verify()
    return saved


def weights(folder: Path) -> dict[str, Tensor]:
    return trained(folder).weights()


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    different = [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)]
    assert not different
