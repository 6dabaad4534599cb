"""Examines the model on held-out documents while it trains, without disturbing the training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lightning as L
from lightning.pytorch.utilities.seed import isolate_rng

from callbacks.step_table import Row, StepTable, read_rows
from callbacks.steps import Step, StepObserver
from lit_mm.documents.document import Document
from lit_mm.errors import UserError
from lit_mm.evaluation.examiners import examine
from lit_mm.evaluation.score import Score
from lit_mm.module import MultimodalModule


class Examination(StepObserver):
    """Accuracy per skill before the first optimizer step, every n steps (counted through all stages) and at stage ends.

    A stage that leaves parts unread has no complete model to ask, and is not examined.

    The documents are shared out over the ranks. Rank 0 writes the row. A step that the file already holds is not
    examined again.

    Args:
        every_n_steps: optimizer steps between examinations; 0 for step 0 and the ends of stages only.
        documents: how many held-out documents to take from the data module, or the documents themselves.
        path: of the CSV: step, stage, overall, then one column per skill. It is resumed like metrics.csv.
        batch_size: documents decoded together.
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
        self.skills = list(dict.fromkeys(document.skill for document in self._documents))
        if trainer.is_global_zero:
            self.table = StepTable(self.path, ["step", "stage", "overall", *self.skills], {"step": int, "stage": str})
            self.examined = {row["step"] for row in self.table.restart(module.step)}
        # Ranks must agree on when to examine, and only rank 0 need see the run folder
        self.examined = trainer.strategy.broadcast(self.examined)
        if module.step == 0:
            self.examine(trainer, module)

    def on_step_end(self, trainer: L.Trainer, module: MultimodalModule, step: Step) -> None:
        if self.every_n_steps and step.number % self.every_n_steps == 0:
            self.examine(trainer, module)

    def on_train_end(self, trainer: L.Trainer, pl_module: MultimodalModule) -> None:
        self.examine(trainer, pl_module)

    def examine(self, trainer: L.Trainer, module: MultimodalModule) -> Score | None:
        """Answer, record and log; None where this step has been examined, or the stage does not read all parts."""
        if module.step in self.examined or module.parts_read(module.stage) < module.parts().keys():
            return None
        with isolate_rng():
            result = examine(module, self._documents, batch_size=self.batch_size).figures
        self.examined.add(module.step)
        self.step, self.accuracy = module.step, {"overall": result.overall, **result.skills}
        if self.table is not None:
            row = {"step": module.step, "stage": module.stage.name, "overall": result.overall}
            self.table.append(row | result.skills)
        metrics = {"accuracy/overall": result.overall} | {f"accuracy/{s}": share for s, share in result.skills.items()}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=module.step)
        return result

    def _held_out(self, trainer: L.Trainer) -> list[Document]:
        documents = self.documents
        if isinstance(documents, int):
            if trainer.datamodule is None:
                raise UserError(f"an examination takes {documents} documents from a data module; the Trainer has none")
            documents = trainer.datamodule.heldout(documents)
        if not documents:
            raise UserError("an examination needs held-out documents, got none. Check `examine_documents` and the data")
        return list(documents)


def read_accuracy(path: str | Path) -> list[Row]:
    """Rows of an accuracy.csv: `step` int, `stage` str, `overall` and the skills float."""
    return read_rows(Path(path), {"step": int, "stage": str})


def accuracy_at(path: str | Path, step: int) -> float | None:
    """Overall accuracy at a step (counted through all stages) in an accuracy.csv; None where none was taken."""
    return next((row["overall"] for row in read_accuracy(path) if row["step"] == step), None)
