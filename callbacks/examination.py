"""Examines the model on held-out documents while it trains, without disturbing the training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import lightning as L
from lightning.pytorch.utilities.seed import isolate_rng

from lit_mm.callbacks.step_table import Row, StepTable, read_rows
from lit_mm.callbacks.steps import Step, StepObserver, data_module
from lit_mm.documents.document import Document
from lit_mm.documents.examination import skills_of
from lit_mm.errors import UserError
from lit_mm.evaluation.examiners import NamedFigures, examine
from lit_mm.evaluation.score import Score
from lit_mm.module import MultimodalModule


@runtime_checkable
class HeldOut(Protocol):
    """A data module with held-out documents, such as a `lit_mm.stream.datamodule.StreamDataModule`."""

    def heldout(self, count: int | None = None) -> list[Document]:
        """Return held-out documents; `count` None returns the configured number."""
        ...


class Examination(StepObserver):
    """Measures the accuracy per skill before the first optimizer step, every n steps, and at the end of each stage.

    The ranks divide the documents among them, and rank 0 writes the row. A step that has a row is not examined again.
    A stage that does not read all parts has no complete model, and is not examined.

    Args:
        every_n_steps: number of optimizer steps between examinations, counted through all stages; 0 examines
            only step 0 and the ends of stages.
        documents: held-out documents, or the number of documents to take from the data module.
        path: path of the CSV with the columns step, stage, overall, and one column per skill of the documents. A
            resumed run continues it.
        batch_size: number of documents that are decoded together.
    Raises:
        UserError: the number of steps is negative, or there are no held-out documents.
    """

    def __init__(
        self, every_n_steps: int, documents: int | Sequence[Document], path: str | Path, batch_size: int = 64
    ) -> None:
        if every_n_steps < 0:
            raise UserError(f"every_n_steps is at least 0, got {every_n_steps}")
        self.every_n_steps, self.path, self.batch_size = every_n_steps, Path(path), batch_size
        self.documents = documents
        self.table: StepTable | None = None
        self.examined: set[int] = set()
        self.step, self.accuracy = -1, {}  # of the last examination: step, and share of right answers by skill

    def on_stage_start(self, trainer: L.Trainer, module: MultimodalModule) -> None:
        self._documents = self._held_out(trainer)
        self.skills = skills_of(self._documents)
        if isinstance(module.examiner, NamedFigures):
            self.skills = list(module.examiner.skills)
        if trainer.is_global_zero:
            self.table = StepTable(self.path, ["step", "stage", "overall", *self.skills], {"step": int, "stage": str})
            self.examined = {row["step"] for row in self.table.restart(module.step)}
        # Ranks must agree on when to examine, and the run folder may be visible to rank 0 alone
        self.examined = trainer.strategy.broadcast(self.examined)
        if module.step == 0:
            self.examine(trainer, module)

    def due(self, trainer: L.Trainer, module: MultimodalModule) -> bool:
        return self._falls_on(module.step)

    def on_step_end(self, trainer: L.Trainer, module: MultimodalModule, step: Step) -> None:
        if self._falls_on(step.number):
            self.examine(trainer, module)

    def on_train_end(self, trainer: L.Trainer, pl_module: MultimodalModule) -> None:
        self.examine(trainer, pl_module)

    def examine(self, trainer: L.Trainer, module: MultimodalModule) -> Score | None:
        """Examine the model, write a row and log it. Returns None if the step has a row or a part is unread."""
        if module.step in self.examined or module.parts_read(module.current_stage) < module.parts().keys():
            return None
        with isolate_rng():
            result = examine(module, self._documents, batch_size=self.batch_size).figures
        self.examined.add(module.step)
        self.step, self.accuracy = module.step, {"overall": result.overall, **result.skills}
        if self.table is not None:
            row = {"step": module.step, "stage": module.current_stage.name, "overall": result.overall}
            self.table.append(row | result.skills)
        metrics = {"accuracy/overall": result.overall} | {f"accuracy/{s}": share for s, share in result.skills.items()}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=module.step)
        return result

    def _falls_on(self, step: int) -> bool:
        return self.every_n_steps > 0 and step % self.every_n_steps == 0

    def _held_out(self, trainer: L.Trainer) -> list[Document]:
        documents = self.documents
        if isinstance(documents, int):
            data = data_module(trainer)
            if not isinstance(data, HeldOut):
                raise UserError(f"an examination takes {documents} documents from a data module; the Trainer has none")
            documents = data.heldout(documents)
        if not documents:
            raise UserError("an examination needs held-out documents, got none. Check `examine_documents` and the data")
        return list(documents)


def read_accuracy(path: str | Path) -> list[Row]:
    """Read the rows of an accuracy.csv: `step` is int, `stage` str, `overall` and the skills are float."""
    return read_rows(Path(path), {"step": int, "stage": str})


def accuracy_at(path: str | Path, step: int) -> float | None:
    """Return the overall accuracy at a step, counted through all stages, in an accuracy.csv; None without a row."""
    return next((row["overall"] for row in read_accuracy(path) if row["step"] == step), None)
