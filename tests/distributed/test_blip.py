"""BLIP survives `kill -9` bit for bit, with momentum copies and queue, which are the same on all ranks.

| objective | on several ranks, as published | equal to one process over the union batch |
|---|---|---|
| ITC | candidates are the rank's own pairs and the queue | no; the queue and the momentum copies are |
| ITM | negatives are the rank's own pairs | no |
| ITM of the retrieval model | negatives are pairs of all ranks, features gathered with gradient | for equal draws |
| LM | mean over all tokens | yes |
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lit_mm.callbacks.metrics_csv import read_metrics
from tests.kills import Launch, launch_all
from tests.three_stages import CUT, RTOL, assert_equal, weights

pytestmark = pytest.mark.distributed


def launch(folder: str, recipe: str = "pairs", **options: Any) -> Launch:
    return Launch(folder, **{"recipe": recipe, "steps": 3, "lr": 1e-3} | options)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blip")
    launch_all(
        [
            launch("unbroken"),
            launch("killed", kill="pretrain step 3"),
            launch("killed", kill="retrieval step 3"),
            launch("killed"),
            launch("two ranks", ranks=2, strategy="ddp"),
            launch("two ranks, killed", ranks=2, strategy="ddp", kill="retrieval step 3"),
            launch("two ranks, killed", ranks=2, strategy="ddp"),
            launch("zero2", ranks=2, strategy="zero2"),
            launch("zero3", ranks=2, strategy=CUT),
            launch("captions", "captions", dropout=0.0),
            launch("captions, two ranks", "captions", dropout=0.0, ranks=2, strategy="ddp"),
            launch("matching", "matching", dropout=0.0),
            launch("matching, ddp", "matching", dropout=0.0, ranks=2, strategy="ddp"),
            launch("matching, zero3", "matching", dropout=0.0, ranks=2, strategy=CUT),
        ],
        folder,
    )
    return folder


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder / "metrics.csv")]


@pytest.mark.parametrize(("killed", "unbroken"), [("killed", "unbroken"), ("two ranks, killed", "two ranks")])
def test_killed_run_continues_bit_for_bit(runs: Path, killed: str, unbroken: str) -> None:
    expected = weights(runs / unbroken)
    assert {"network.queue.image", "network.queue.pointer", "network.momentum.updates"} <= expected.keys()
    assert any(name.startswith("network.momentum.text.") for name in expected)
    assert_equal(weights(runs / killed), expected)
    assert losses(runs / killed) == losses(runs / unbroken)


@pytest.mark.parametrize("name", ["two ranks", "two ranks, killed", "zero2", "zero3"])
def test_momentum_copies_and_queue_are_the_same_on_all_ranks(runs: Path, name: str) -> None:
    for stage in ("retrieval",):
        first, second = (runs / name / f"buffers-{stage}-{rank}.txt" for rank in (0, 1))
        assert first.read_text() == second.read_text()
    assert torch.equal(weights(runs / name)["network.momentum.updates"], torch.tensor([6]))


def test_captioning_on_two_ranks_equals_one_process(runs: Path) -> None:
    assert losses(runs / "captions, two ranks") == pytest.approx(losses(runs / "captions"), rel=RTOL)


@pytest.mark.parametrize("engine", ["ddp", "zero3"])
def test_matching_of_the_retrieval_model_on_two_ranks_equals_one_process(runs: Path, engine: str) -> None:
    expected = losses(runs / "matching")
    assert losses(runs / f"matching, {engine}") == pytest.approx(expected, rel=1e-4) and len(set(expected)) == 3


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_zero_equals_ddp(runs: Path, name: str) -> None:
    assert losses(runs / name) == pytest.approx(losses(runs / "two ranks"), rel=1e-4)
