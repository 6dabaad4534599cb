"""Checkpointing keeps the right checkpoints and deletes the others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lit_mm.callbacks.checkpointing import Checkpointing
from lit_mm.callbacks.examination import accuracy_at
from lit_mm.checkpoints.manifest import checkpoint_name, published
from lit_mm.checkpoints.writing import publish
from lit_mm.errors import UserError


def saved_at(folder: Path, *steps: int) -> None:
    for step in steps:
        said = {"family": "f", "config": "", "stage": "a", "step": step, "stored": ["w"], "frozen": {}}
        state = {"state_dict": {"w": torch.ones(1)}, "optimizer_states": [], "optimizer": {"groups": []}}
        publish(state | {"lit_mm": said}, folder / checkpoint_name(1, "a", step))


def left(folder: Path) -> list[str]:
    return [one.path.name for one in published(folder)]


def names(*steps: int) -> list[str]:
    return [checkpoint_name(1, "a", step) for step in steps]


def test_the_last_are_kept(tmp_path: Path):
    saved_at(tmp_path, 1, 2, 3, 4)
    Checkpointing(tmp_path, keep=2).tidy()
    assert left(tmp_path) == names(3, 4)


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ({1: 0.5, 2: 0.9, 3: 0.7, 4: 0.6}, (2, 3, 4)),
        ({2: 0.9, 3: 0.9}, (3, 4)),  # of equals the later
        ({1: 0.1}, (1, 3, 4)),  # the others were not examined
        ({2: 0.4, 4: 0.8}, (3, 4)),
    ],
    ids=["an early one", "equals", "one alone", "the last"],
)
def test_the_best_is_kept_too(tmp_path: Path, scores: dict[int, float], kept: tuple[int, ...]):
    accuracy = tmp_path / "accuracy.csv"
    accuracy.write_text("step,stage,overall\n" + "".join(f"{step},a,{score}\n" for step, score in scores.items()))
    folder = tmp_path / "checkpoints"
    saved_at(folder, 1, 2, 3, 4)
    Checkpointing(folder, keep=2, score_at=lambda step: accuracy_at(accuracy, step)).tidy()
    assert left(folder) == names(*kept)


@pytest.mark.parametrize("wrong", [{"every": 0}, {"keep": 0}])
def test_none_kept_or_made_is_refused(tmp_path: Path, wrong: dict[str, int]):
    with pytest.raises(UserError, match="at least"):
        Checkpointing(tmp_path, **wrong)
