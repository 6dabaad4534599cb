"""On devices that work behind the host's back, the figures of a step are read while the next one runs.

The tests put every run into this mode on the CPU. `tests/callbacks/test_ledger.py` has whole runs in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest

from lit_mm.callbacks import steps
from lit_mm.callbacks.finite_loss import FiniteLoss
from lit_mm.callbacks.metrics_csv import MetricsCSV, read_metrics
from lit_mm.callbacks.steps import Measured, Step, StepObserver
from lit_mm.checkpoints import manifest
from lit_mm.errors import UserError
from tests.callbacks.test_finite_loss import Break
from tests.tiny import run_recipe, stages, xcomposer2


@pytest.fixture(autouse=True)
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "reads_late", lambda trainer: True)


class Spy(StepObserver):
    """An observer that is due every `every` steps, and wants to stop behind step `last`."""

    def __init__(self, every: int, last: int = 99) -> None:
        self.every, self.last = every, last
        self.reports: list[tuple[int, int, bool]] = []  # (step, finished steps when it was reported, stop)
        self.finished = 0

    def due(self, trainer: L.Trainer, module: Any) -> bool:
        self.finished = module.step
        return module.step % self.every == 0

    def wants_to_stop(self) -> bool:
        return self.finished + 1 >= self.last

    def on_step_end(self, trainer: L.Trainer, module: Any, step: Step) -> None:
        self.reports.append((step.number, module.step, step.stop))


@pytest.mark.parametrize(
    ("every", "reports"),
    [
        # the first and the last steps of the stages, 1 and 4, 5 and 7, are read at once
        (99, [(1, 1), (2, 3), (3, 4), (4, 4), (5, 5), (6, 7), (7, 7)]),
        (2, [(1, 1), (2, 2), (3, 4), (4, 4), (5, 5), (6, 6), (7, 7)]),
        (1, [(step, step) for step in range(1, 8)]),
    ],
)
def test_a_step_is_reported_one_step_later_unless_an_observer_is_due(
    recipe: Any, every: int, reports: list[tuple[int, int]]
) -> None:
    spy = Spy(every)
    recipe.run(recipe.module(), [MetricsCSV(recipe.folder / "late.csv"), spy])
    assert [report[:2] for report in spy.reports] == reports


def test_numbers_are_read_behind_the_next_step(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, read = [], Measured.read
    spy = Spy(99)

    def noted(measured: Measured) -> list[float]:
        reads.append((measured.step.number, spy.finished))
        return read(measured)

    monkeypatch.setattr(Measured, "read", noted)
    recipe.run(recipe.module(), [spy])
    # at the begins and ends of stages nobody is asked
    assert reads == [(1, 0), (2, 3), (3, 3), (4, 3), (5, 3), (6, 6), (7, 6)]


def test_the_table_has_the_rows_of_a_run_that_reads_at_once(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Logs(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: object) -> None:
            pl_module.log("thing", float(pl_module.step))

    tables = []
    for name, is_late in (("late", True), ("at once", False)):
        monkeypatch.setattr(steps, "reads_late", lambda trainer, is_late=is_late: is_late)
        recipe.run(recipe.module(), [MetricsCSV(recipe.folder / name), Logs()])
        tables.append([{**row, "seconds": 0} for row in read_metrics(recipe.folder / name)])
    assert tables[0] == tables[1] and len(tables[0]) == 7


def test_the_wait_for_the_device_counts_as_time_of_a_step(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, seconds, read = [1.0], [], Measured.read

    class Seconds(Spy):
        def on_step_end(self, trainer: L.Trainer, module: Any, step: Step) -> None:
            seconds.append(step.seconds)

    def slow(measured: Measured) -> list[float]:
        clock[0] += 1
        return read(measured)

    monkeypatch.setattr(Measured, "read", slow)
    monkeypatch.setattr(steps.time, "perf_counter", lambda: clock[0])
    recipe.run(recipe.module(), [Seconds(99)])
    assert seconds == [1, 0, 1, 2, 1, 0, 2]  # the last step of a stage waits for the one before and for itself


def test_a_wish_to_stop_is_met_at_once_on_one_rank(recipe: Any) -> None:
    spy = Spy(99, last=2)
    recipe.run(recipe.module(), [spy])
    assert spy.reports[:3] == [(1, 1, False), (2, 3, False), (3, 3, True)]


def test_a_callback_that_ends_the_stage_ends_it_at_its_step(recipe: Any) -> None:
    class Ends(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: object) -> None:
            trainer.should_stop = trainer.should_stop or pl_module.step == 1

    path = recipe.folder / "metrics.csv"
    recipe.run(recipe.module(), [MetricsCSV(path), Ends()])
    assert [row["step"] for row in read_metrics(path)][:3] == [1, 2, 5]


def test_no_step_behind_a_loss_of_nan_is_saved(tmp_path: Path) -> None:
    # Step 3 is broken. The checkpoint of step 4 is due, so both steps are read before it is written
    with pytest.raises(
        UserError, match=r"'pretrain', step 3: the loss is nan\. The last samples of rank 0 were tiny/\d+, tiny/"
    ):
        run_recipe(xcomposer2(), stages(), tmp_path, callbacks=[FiniteLoss(), Break()], every=2)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.csv")] == [1, 2]
    assert manifest.newest(tmp_path / "checkpoints").step == 2
