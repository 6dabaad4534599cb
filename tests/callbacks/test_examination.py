from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import Logger

from lit_mm.callbacks import examination
from lit_mm.callbacks.examination import Examination, read_accuracy
from lit_mm.callbacks.metrics_csv import MetricsCSV, read_metrics
from lit_mm.documents.document import Document
from lit_mm.errors import UserError
from lit_mm.evaluation import examiners
from lit_mm.evaluation.score import Prediction, score


class Remembers(Logger):
    name = version = None

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, Any]]] = []

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        return None


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Install an examiner that answers every "read" question rightly, draws random numbers and records the step."""
    calls: list[int] = []

    def examine(module: Any, documents: list[Document], *, batch_size: int) -> examiners.Examination:
        calls.append(module.step)
        torch.rand(17)
        predictions = tuple(Prediction(d, d.answer, d.skill == "read") for d in documents)
        return examiners.Examination(score(predictions), predictions)

    monkeypatch.setattr(examination, "examine", examine)
    return calls


def test_it_examines_before_the_first_step_every_n_steps_and_at_stage_ends(recipe: Any, asked: list):
    path, logger = recipe.folder / "accuracy.csv", Remembers()
    recipe.run(recipe.module(), [Examination(3, 4, path)], loggers=[logger])
    assert asked == [0, 3, 4, 6, 7]
    rows = read_accuracy(path)
    assert [(row["step"], row["stage"]) for row in rows] == [
        (0, "pretrain"),
        (3, "pretrain"),
        (4, "pretrain"),
        (6, "finetune"),
        (7, "finetune"),
    ]
    assert rows[0] == {"step": 0, "stage": "pretrain", "overall": 0.5, "read": 1.0, "count": 0.0}
    metrics = {"accuracy/overall": 0.5, "accuracy/read": 1.0, "accuracy/count": 0.0}
    assert [row for row in logger.rows if "accuracy/overall" in row[1]] == [(s, metrics) for s in (0, 3, 4, 6, 7)]


def test_without_an_interval_it_examines_at_the_start_and_at_stage_ends(recipe: Any, asked: list):
    recipe.run(recipe.module(), [Examination(0, 2, recipe.folder / "accuracy.csv")])
    assert asked == [0, 4, 7]


def test_documents_may_be_given_in_place_of_their_number(
    recipe: Any, asked: list, documents: Callable[[int], list[Document]]
):
    recipe.run(recipe.module(), [Examination(0, documents(1), recipe.folder / "accuracy.csv")])
    assert list(read_accuracy(recipe.folder / "accuracy.csv")[0]) == ["step", "stage", "overall", "read"]


def test_documents_without_a_skill_have_no_column_and_no_metric(
    recipe: Any, asked: list, documents: Callable[[int], list[Document]]
):
    path, logger = recipe.folder / "accuracy.csv", Remembers()
    plain = [replace(document, skill="") for document in documents(2)]
    recipe.stages = recipe.stages[:1]
    recipe.run(recipe.module(), [Examination(0, plain, path)], loggers=[logger])
    assert list(read_accuracy(path)[0]) == ["step", "stage", "overall"]
    assert [row for _, row in logger.rows if "accuracy/overall" in row] == [{"accuracy/overall": 0.0}] * 2


def test_it_does_not_disturb_the_training(recipe: Any, asked: list):
    plain, examined = recipe.folder / "plain.csv", recipe.folder / "examined.csv"
    recipe.run(recipe.module(), [MetricsCSV(plain)])
    recipe.run(recipe.module(), [MetricsCSV(examined), Examination(1, 2, recipe.folder / "accuracy.csv")])
    assert [row["loss"] for row in read_metrics(plain)] == [row["loss"] for row in read_metrics(examined)]


def test_a_resumed_run_repeats_no_examination_and_drops_those_it_will_repeat(
    recipe: Any, asked: list, killed: type[Exception], save_then_die: Any
):
    path, checkpoint = recipe.folder / "accuracy.csv", recipe.folder / "last.ckpt"
    with pytest.raises(killed):
        recipe.run(recipe.module(), [Examination(1, 2, path), save_then_die(checkpoint, "pretrain", 2, 3)])
    assert [row["step"] for row in read_accuracy(path)] == [0, 1, 2, 3]
    asked.clear()
    recipe.run(recipe.module(), [Examination(1, 2, path)], first=0, checkpoint=checkpoint, steps_done=2)
    assert asked == [3, 4, 5, 6, 7]
    assert [row["step"] for row in read_accuracy(path)] == list(range(8))


def test_an_examination_without_documents_is_refused(recipe: Any, tmp_path: Path):
    with pytest.raises(UserError, match="needs held-out documents"):
        recipe.run(recipe.module(), [Examination(0, [], tmp_path / "accuracy.csv")])
    with pytest.raises(UserError, match="at least 0"):
        Examination(-1, 2, tmp_path / "accuracy.csv")
