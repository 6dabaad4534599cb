"""Stages that end early or out of time, callbacks of a recipe, and rehearsals, through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml

import lit_mm.commands.recipe
from lit_mm.callbacks.metrics_csv import read_metrics
from lit_mm.checkpoints import manifest, reading
from lit_mm.cli import main
from tests.commands.test_stage_keys import RECIPE

OPTIONS = ("--run_dir=run", "--track=false", "--examine_documents=2", "--stages.*.max_steps=5")
STOP = {"class_path": "EarlyStopping", "init_args": {"monitor": "lr_connector", "mode": "max", "patience": 1}}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    torch.use_deterministic_algorithms(False)


class StopsAt(L.Callback):
    """Ends a stage behind a micro-batch, as a user's callback may: on one rank alone."""

    def __init__(self, batch: int, rank: int = 0) -> None:
        self.batch, self.rank = batch, rank

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.batch and trainer.global_rank == self.rank:
            trainer.should_stop = True


def fit(*words: str, **trainer: Any) -> None:
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"trainer": RECIPE["trainer"] | trainer}))
    main(["fit", "--config", "recipe.yaml", *OPTIONS, *words])


def steps() -> list[tuple[int, str]]:
    return [(row["step"], row["stage"]) for row in read_metrics("run/metrics.csv")]


BOTH = [(1, "pretrain"), (2, "pretrain"), (3, "finetune"), (4, "finetune")]


def test_early_stopping_finishes_its_stage_and_the_next_begins() -> None:
    fit(callbacks=[STOP])
    assert steps() == BOTH
    stages = json.loads(Path("run/summary.json").read_text())["stages"]
    assert [stage["steps"] for stage in stages] == [2, 2]
    assert all(stage["stopped"].startswith("stopped at step 2 of 5: Monitored metric lr_connector") for stage in stages)
    ledger = json.loads(Path("run/ledger.json").read_text())["stages"]
    assert [stage["stopped"]["step"] for stage in ledger] == [2, 2]
    saved = manifest.newest(Path("run/checkpoints"))
    assert reading.read(saved.path).manifest["ends"]["pretrain"]["planned"] == 5
    fit(callbacks=[STOP])  # the same command again
    assert steps() == BOTH, "a stage that a callback has finished is not reopened"


def test_a_stage_ends_behind_a_whole_optimizer_step() -> None:
    callback = {"class_path": "tests.callbacks.test_early_end.StopsAt", "init_args": {"batch": 2}}
    fit("--data.init_args.micro_batch=1", callbacks=[callback])
    assert steps() == BOTH
    stages = json.loads(Path("run/summary.json").read_text())["stages"]
    assert stages[0]["stopped"] == "stopped at step 2 of 5: a callback set `should_stop`"


@pytest.mark.distributed
def test_a_callback_of_one_rank_ends_the_stage_on_all() -> None:
    callback = {"class_path": "tests.callbacks.test_early_end.StopsAt", "init_args": {"batch": 1, "rank": 1}}
    trainer = RECIPE["trainer"] | {"callbacks": [callback], "devices": 2, "strategy": "ddp"}
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"trainer": trainer}))
    words = [sys.executable, "-m", "lit_mm", "fit", "--config", "recipe.yaml", *OPTIONS]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert steps() == BOTH


def test_a_time_limit_leaves_the_stage_unfinished_and_the_same_command_goes_on(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lit_mm.commands.recipe, "time_limit", lambda limit: 1e-9)
    for number, place in enumerate(
        ["step 1 of 5 of stage 'pretrain'", "step 2 of 5", "step 1 of 5 of stage 'finetune'"]
    ):
        with pytest.raises(SystemExit) as end:
            fit(callbacks=[STOP], max_time="00:00:00:01")
        assert end.value.code == 75
        assert f"stopped by trainer.max_time after {place}" in capfd.readouterr().err
        assert steps() == BOTH[: number + 1]
    monkeypatch.setattr(lit_mm.commands.recipe, "time_limit", lambda limit: None)
    fit(callbacks=[STOP], max_time="00:00:00:01")
    assert steps() == BOTH


def test_callbacks_see_accuracies_and_save_into_the_run_folder() -> None:
    best = {
        "class_path": "ModelCheckpoint",
        "init_args": {"monitor": "accuracy/overall", "mode": "max", "filename": "best"},
    }
    every = {"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 2, "save_top_k": -1}}
    fit("--examine_every=2", "--stages=pretrain", callbacks=[best, every], profiler="simple")
    names = sorted(path.name for path in Path("run/model_checkpoints/pretrain").iterdir())
    assert names[0] == "best.ckpt" and len(names) == 3
    for name in names:
        reading.read(Path("run/model_checkpoints/pretrain") / name).verify()
    assert "run_training_epoch" in "".join(path.read_text() for path in Path("run/profile").glob("*pretrain*"))


@pytest.mark.parametrize(
    ("monitor", "message"),
    [
        (
            "val_loss",
            "EarlyStopping monitors 'val_loss', which is not measured. Measured are loss, tokens, seconds, lr_",
        ),
        ("accuracy/overall", "which is measured only at the ends of stages. Set `examine_every`"),
    ],
)
def test_a_metric_that_is_not_measured_is_refused(
    capsys: pytest.CaptureFixture[str], monitor: str, message: str
) -> None:
    with pytest.raises(SystemExit) as end:
        fit(callbacks=[{"class_path": "EarlyStopping", "init_args": {"monitor": monitor}}])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_a_rehearsal_trains_saves_and_loads_and_leaves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--stages.finetune.schedule.warmup=4", "--stages.finetune.train.connector.from_step=3")
    fit(*words, fast_dev_run=True)
    text = capsys.readouterr().out
    assert "pretrain 1/2: 1 optimizer steps" in text or "rehearsed: every stage was trained" in text
    assert "rehearsed: every stage was trained and examined, and its checkpoint loaded" in text
    assert "\nnot exported: --format hf: no layout of this format is known for lit_mm.families.XComposer2\n" in text
    assert "ask it" not in text  # the folder is gone
    assert sorted(path.name for path in Path().iterdir()) == ["recipe.yaml"]
