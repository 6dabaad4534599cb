"""Measures the figures that a stage names, without disturbing the training, and keeps them in a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import lightning as L
from lightning.pytorch.utilities.seed import isolate_rng

from lit_mm.callbacks.step_table import StepTable, read_rows
from lit_mm.callbacks.steps import Step, StepObserver
from lit_mm.errors import UserError
from lit_mm.evaluation.figures import Figures
from lit_mm.module import MultimodalModule
from lit_mm.stages.examine import LOSS

TYPES = {"step": int, "stage": str, "figure": str}


class StageFigures(StepObserver):
    """Measures the figures of the current stage before its first step, every n steps, and at its end.

    A stage that does not read all parts has no complete model, and is not measured. A figure of a step that is in the
    table is not measured again.

    Args:
        every_n_steps: number of optimizer steps between measurements, counted through all stages; 0 measures
            only at the begins and ends of stages.
        measures: name of a stage -> sets of figures that it measures.
        path: path of the CSV with the columns step, stage, figure, value. A resumed run continues it.
        best: figure that selects the best checkpoint; "" for none.
    Raises:
        UserError: no stage measures `best`.
    """

    def __init__(
        self, every_n_steps: int, measures: Mapping[str, Sequence[Figures]], path: str | Path, best: str = ""
    ) -> None:
        self.every_n_steps, self.measures, self.path, self.best = every_n_steps, measures, Path(path), best
        self.table: StepTable | None = None
        self.finished: set[tuple[int, str]] = set()  # (step, figure) of the rows

    def on_stage_start(self, trainer: L.Trainer, module: MultimodalModule) -> None:
        names = sorted({name for figures in self.names(module).values() for name in figures})
        if self.best and self.best not in names:
            raise UserError(f"stages.*.examine.best: {self.best!r} is not measured. Measured are {', '.join(names)}")
        if trainer.is_global_zero:
            self.table = StepTable(self.path, ["step", "stage", "figure", "value"], TYPES)
            self.finished = {(row["step"], row["figure"]) for row in self.table.restart(module.step)}
        # Ranks must agree on what to measure, and the run folder may be visible to rank 0 alone
        self.finished = trainer.strategy.broadcast(self.finished)
        self.measure(trainer, module)

    def due(self, trainer: L.Trainer, module: MultimodalModule) -> bool:
        return self._falls_on(module.step)

    def on_step_end(self, trainer: L.Trainer, module: MultimodalModule, step: Step) -> None:
        if self._falls_on(step.number):
            self.measure(trainer, module)

    def on_train_end(self, trainer: L.Trainer, pl_module: MultimodalModule) -> None:
        self.measure(trainer, pl_module)

    def _falls_on(self, step: int) -> bool:
        return self.every_n_steps > 0 and step % self.every_n_steps == 0

    def names(self, module: MultimodalModule) -> dict[str, list[str]]:
        """Return the names of the figures of every stage."""
        return {
            stage: [name for measure in measures for name in measure.names(module)]
            for stage, measures in self.measures.items()
        }

    def measure(self, trainer: L.Trainer, module: MultimodalModule) -> None:
        """Measure the figures of this step that are not in the table, write and log them."""
        stage = module.current_stage
        if module.parts_read(stage) < module.parts().keys():
            return
        for measure in self.measures.get(stage.name, ()):
            if all((module.step, name) in self.finished for name in measure.names(module)):
                continue
            with isolate_rng():
                figures = measure(module)
            for name, value in figures.items():
                if self.table is not None and (module.step, name) not in self.finished:
                    self.table.append({"step": module.step, "stage": stage.name, "figure": name, "value": value})
                self.finished.add((module.step, name))
            for logger in trainer.loggers:
                logger.log_metrics(figures, step=module.step)


def score_by(path: str | Path, best: str) -> Callable[[int], float | None]:
    """Return a function of a step that gives its score by a figure in a figures.csv; None if it was not measured.

    The highest score is the best, so a loss counts with a minus sign.

    Args:
        path: path of the table.
        best: name of the figure.
    """
    sign = -1.0 if best.partition("/")[0] == LOSS else 1.0

    def score_at(step: int) -> float | None:
        rows = read_rows(Path(path), TYPES)
        return next((sign * row["value"] for row in rows if (row["step"], row["figure"]) == (step, best)), None)

    return score_at
