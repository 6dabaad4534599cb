"""A loss that is not finite ends the run and is not written to files."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest

from lit_mm.callbacks.finite_loss import FiniteLoss
from lit_mm.callbacks.metrics_csv import read_metrics
from lit_mm.checkpoints import manifest
from lit_mm.errors import UserError
from tests.tiny import run_recipe, stages, xcomposer2


class Break(L.Callback):
    """This callback sets a weight of the connector to nan before the third step."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        if trainer.global_step == 2:
            next(iter(pl_module.parts()["connector"].values())).data.fill_(float("nan"))


def test_the_run_ends_at_that_step_and_names_its_samples(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"'pretrain', step 3: the loss is nan\. The last samples of rank 0 were tiny/\d+, tiny/"
    ):
        run_recipe(xcomposer2(), stages(), tmp_path, callbacks=[FiniteLoss(), Break()], every=1)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.csv")] == [1, 2]
    assert manifest.newest(tmp_path / "checkpoints").step == 2


def test_other_runs_go_through(tmp_path: Path) -> None:
    run_recipe(xcomposer2(), stages(), tmp_path, callbacks=[FiniteLoss()])
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.csv")] == list(range(1, 9))
