"""BLIP survives `kill -9` bit for bit, with momentum copies and queue, which are the same on all ranks.

The table of docs/objectives.md says what each objective compares over ranks, and where one process gives the same.
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


ENGINES: dict[str, Any] = {"ddp": "ddp", "zero2": "zero2", "zero3": CUT}


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
            launch("zero3, killed", ranks=2, strategy=CUT, kill="retrieval step 3"),
            launch("zero3, killed", ranks=2, strategy=CUT),
            launch("stray", "captions", ranks=2, strategy="ddp", meddle="stray"),
            launch("captions", "captions", dropout=0.0),
            launch("matching", "matching", dropout=0.0),
            *(
                launch(f"{recipe}, {engine}", recipe, dropout=0.0, ranks=2, strategy=strategy)
                for recipe in ("captions", "matching")
                for engine, strategy in ENGINES.items()
            ),
        ],
        folder,
    )
    return folder


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder / "metrics.csv")]


KILLED = [("killed", "unbroken"), ("two ranks, killed", "two ranks"), ("zero3, killed", "zero3")]


@pytest.mark.parametrize(("killed", "unbroken"), KILLED)
def test_killed_run_continues_bit_for_bit(runs: Path, killed: str, unbroken: str) -> None:
    expected = weights(runs / unbroken)
    assert {"network.queue.image", "network.queue.pointer", "network.momentum.updates"} <= expected.keys()
    assert any(name.startswith("network.momentum.text.") for name in expected)
    assert_equal(weights(runs / killed), expected)
    assert losses(runs / killed) == losses(runs / unbroken)


@pytest.mark.parametrize("name", ["two ranks", "two ranks, killed", "zero2", "zero3", "zero3, killed"])
def test_momentum_copies_and_queue_are_the_same_on_all_ranks(runs: Path, name: str) -> None:
    for stage in ("pretrain", "caption", "retrieval"):
        first, second = (runs / name / f"buffers-{stage}-{rank}.txt" for rank in (0, 1))
        assert first.read_text() == second.read_text()
    assert torch.equal(weights(runs / name)["network.momentum.updates"], torch.tensor([6]))


def test_ddp_broadcasts_neither_momentum_copies_nor_queue(runs: Path) -> None:
    first, second = (
        dict(line.split() for line in (runs / "stray" / f"buffers-caption-{rank}.txt").read_text().splitlines())
        for rank in (0, 1)
    )
    assert {name for name in first if first[name] != second[name]} == {"queue.image"}


@pytest.mark.parametrize("engine", ENGINES)
def test_captioning_on_two_ranks_equals_one_process(runs: Path, engine: str) -> None:
    assert losses(runs / f"captions, {engine}") == pytest.approx(losses(runs / "captions"), rel=RTOL)


@pytest.mark.parametrize("engine", ENGINES)
def test_matching_of_the_retrieval_model_on_two_ranks_equals_one_process(runs: Path, engine: str) -> None:
    expected = losses(runs / "matching")
    assert losses(runs / f"matching, {engine}") == pytest.approx(expected, rel=1e-4) and len(set(expected)) == 3


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_zero_equals_ddp(runs: Path, name: str) -> None:
    assert losses(runs / name) == pytest.approx(losses(runs / "two ranks"), rel=1e-4)
