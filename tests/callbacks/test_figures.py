"""Figures of stages are measured at their times, once, and without disturbing the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lit_mm.callbacks.figures import TYPES, StageFigures, score_by
from lit_mm.callbacks.metrics_csv import MetricsCSV, read_metrics
from lit_mm.callbacks.step_table import read_rows
from lit_mm.errors import UserError


class Steps:
    """Gives the step as the figures of a measure, and draws random numbers."""

    def __init__(self, *names: str) -> None:
        self.figures, self.steps = names, []

    def names(self, module: Any) -> list[str]:
        return list(self.figures)

    def __call__(self, module: Any) -> dict[str, float]:
        torch.rand(3)
        self.steps.append(module.step)
        return {name: module.step / 10 for name in self.figures}


def test_every_stage_is_measured_at_its_begin_its_end_and_every_n_steps(recipe: Any) -> None:
    path = recipe.folder / "figures.csv"
    first, second = Steps("a/x"), Steps("b/x", "b/y")
    recipe.run(recipe.module(), [StageFigures(2, {"pretrain": [first], "finetune": [second]}, path)])
    ends = sorted({*first.steps, *second.steps})
    assert first.steps[0] == 0 and second.steps[0] == first.steps[-1]
    assert all(step in ends for step in range(0, ends[-1] + 1, 2))
    rows = read_rows(path, TYPES)
    assert [row["step"] for row in rows if row["figure"] == "b/y"] == second.steps
    assert {row["stage"] for row in rows if row["figure"] == "a/x"} == {"pretrain"}
    assert rows[-1] == {"step": ends[-1], "stage": "finetune", "figure": "b/y", "value": ends[-1] / 10}


def test_a_resumed_run_measures_only_what_it_will_repeat(recipe: Any, killed: Any, save_then_die: Any) -> None:
    path, checkpoint = recipe.folder / "figures.csv", recipe.folder / "last.ckpt"
    measure = Steps("a/x", "a/y")
    observer = StageFigures(1, {"pretrain": [measure], "finetune": [measure]}, path)
    with pytest.raises(killed):
        recipe.run(recipe.module(), [observer, save_then_die(checkpoint, "pretrain", 2, 3)])
    assert measure.steps == [0, 1, 2, 3]
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith("2,pretrain,a/y")) + "\n")
    measure.steps.clear()
    observer = StageFigures(1, {"pretrain": [measure], "finetune": [measure]}, path)
    recipe.run(recipe.module(), [observer], first=0, checkpoint=checkpoint, steps_done=2)
    assert measure.steps[:2] == [2, 3]  # step 2 lacked a figure
    rows = [(row["step"], row["figure"]) for row in read_rows(path, TYPES)]
    assert len(rows) == len(set(rows)) == 2 * 8


def test_measuring_leaves_the_losses(recipe: Any, tmp_path: Path) -> None:
    plain, measured = tmp_path / "plain.csv", tmp_path / "measured.csv"
    recipe.run(recipe.module(), [MetricsCSV(plain)])
    observer = StageFigures(1, {"pretrain": [Steps("a")], "finetune": [Steps("a")]}, tmp_path / "figures.csv")
    recipe.run(recipe.module(), [observer, MetricsCSV(measured)])
    assert [row["loss"] for row in read_metrics(plain)] == [row["loss"] for row in read_metrics(measured)]


def test_a_figure_that_no_stage_measures_cannot_be_the_best(recipe: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'loss/x' is not measured\. Measured are a/x"):
        recipe.run(recipe.module(), [StageFigures(0, {"pretrain": [Steps("a/x")]}, tmp_path / "f.csv", "loss/x")])


def test_the_lowest_loss_and_the_highest_other_figure_are_best(tmp_path: Path) -> None:
    path = tmp_path / "figures.csv"
    path.write_text("step,stage,figure,value\n1,s,loss/x,2.0\n1,s,anls/x,0.5\n2,s,loss/x,1.0\n2,s,anls/x,0.25\n")
    losses, scores = score_by(path, "loss/x"), score_by(path, "anls/x")
    assert max((1, 2), key=losses) == 2 and max((1, 2), key=scores) == 1
    assert losses(3) is None
