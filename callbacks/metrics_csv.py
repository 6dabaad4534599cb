"""metrics.csv: one row per optimizer step, through all stages of a run."""

from __future__ import annotations

import time
from pathlib import Path

import lightning as L

from lit_mm.callbacks.step_table import Row, StepTable, read_rows
from lit_mm.callbacks.steps import Step, StepObserver, observers
from lit_mm.module import MultimodalModule

COLUMNS = ("step", "stage", "loss", "tokens", "samples", "seconds")


class MetricsCSV(StepObserver):
    """Writes step, stage, loss, tokens, seconds and the learning rate of every part after every optimizer step.

    The column `samples` is a digest of the ids of the step's samples: two runs with equal digests were trained on the
    same stream, however it was split.

    What other callbacks log with `pl_module.log` gets columns behind these, from its first value on.

    This callback must precede the one that saves: a row then reaches the file before its step's checkpoint. A stage
    that resumes at step s removes the rows after s, so the file ends as if the run had never stopped.

    Args:
        path: path of the file.
        launched: start of the command on the monotonic clock, seconds; None: now. The column `seconds` counts from it,
            and in a resumed run from the last row that stays.
    """

    def __init__(self, path: str | Path, launched: float | None = None) -> None:
        self.path = Path(path)
        self.launched = time.monotonic() if launched is None else launched
        self.earlier: float | None = None  # seconds of earlier launches
        self.table: StepTable | None = None

    def on_stage_start(self, trainer: L.Trainer, module: MultimodalModule) -> None:
        if not trainer.is_global_zero:
            return
        rates = [f"lr_{part}" for part in module.base_parts()]
        self.objectives = list(module.objectives) if len(module.objectives) > 1 else []
        losses = [f"loss/{name}" for name in self.objectives]
        self.figure_columns = [name for observer in observers(trainer) for name in observer.figure_names]
        new = ("samples", *self.figure_columns)
        self.table = StepTable(self.path, [*COLUMNS, *losses, *rates, *self.figure_columns], new=new, grows=True)
        rows = self.table.restart(module.step)
        if self.earlier is None:
            self.earlier = rows[-1]["seconds"] if rows else 0.0
        if [row["step"] for row in rows] != list(range(1, module.step + 1)):
            trainer.print(
                f"{self.path} lacks rows of the {module.step} steps before this start; they cannot be restored"
            )

    def run_seconds(self) -> float | None:
        """Return the wall time of the run up to now, of all its launches, in seconds; None if it trains nothing now.

        The time between the last row that stayed and the end of an earlier launch does not count.
        """
        return None if self.earlier is None else self.earlier + time.monotonic() - self.launched

    def due(self, trainer: L.Trainer, module: MultimodalModule) -> bool:
        return False

    def on_step_end(self, trainer: L.Trainer, module: MultimodalModule, step: Step) -> None:
        if self.table is None:
            return
        self.table.append(
            {
                **{name: float(value) for name, value in step.logged.items()},
                "step": step.number,
                "stage": step.stage,
                "loss": step.loss,
                "tokens": step.tokens,
                "samples": step.samples,
                "seconds": round(self.earlier + time.monotonic() - self.launched, 3),
                **{f"loss/{name}": step.losses.get(name, float("nan")) for name in self.objectives},
                **{f"lr_{part}": rate for part, rate in step.learning_rates.items()},
                **{name: step.figures[name] for name in self.figure_columns},
            }
        )


def read_metrics(path: str | Path) -> list[Row]:
    """Read the rows of a metrics.csv: `step`, `tokens` are int, `stage`, `samples` are str, all others are float."""
    return read_rows(Path(path))
