"""The progress bar shows stage, step, loss, useful tokens per second, further throughput, and the time left."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from lit_mm.callbacks.steps import Step, StepObserver
from lit_mm.errors import counted
from lit_mm.module import MultimodalModule
from lit_mm.stages.stage import Stage, branches

WINDOW = 50  # optimizer steps over which tokens per second are averaged
SMOOTH = 0.9  # weight of earlier steps in the loss of the bar


class StageProgress(StepObserver, ProgressBar):
    """Shows a bar in a terminal; elsewhere it prints a plain line every ten seconds, so that logs stay readable.

    Args:
        stages: stages of the recipe in order, for "1/2" and the time left of later stages. If the number of steps of a
            later stage is unknown, the time left of the recipe is a lower bound, marked by ">".
        every_seconds: seconds between plain lines.
        console: console of the output; None: standard output.
    """

    def __init__(self, stages: Sequence[Stage], every_seconds: float = 10.0, console: Console | None = None) -> None:
        super().__init__()
        self.stages = [(stage.name, stage.max_steps) for stage in stages]
        self.branches = branches(stages)
        self.every_seconds = every_seconds
        self.console = console
        self.enabled = True
        self.bar: Progress | None = None
        self.task: TaskID | None = None

    def enable(self) -> None:
        self.enabled = True

    def disable(self) -> None:
        self.enabled = False

    def setup(self, trainer: L.Trainer, pl_module: MultimodalModule, stage: str) -> None:
        self.enabled = True  # the base class disables it on the other ranks
        super().setup(trainer, pl_module, stage)

    def on_stage_start(self, trainer: L.Trainer, module: MultimodalModule) -> None:
        self.resumed_at, self.finished, self.total = trainer.global_step, trainer.global_step, module.total_steps
        self.name = module.current_stage.name
        self.label = stage_label(self.name, [name for name, _ in self.stages])
        if self.name in self.branches:
            self.label += f" from {self.branches[self.name]}"
        self.loss: float | None = None
        self.steps: deque[Step] = deque(maxlen=WINDOW)
        self.started = self.last_line = time.monotonic()
        if self.enabled:
            self._open()

    def _open(self) -> None:
        self.console = self.console or Console(file=sys.stdout)
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("[bold cyan]{task.description}"),
                BarColumn(bar_width=None, style="grey30", complete_style="cyan", finished_style="green"),
                TextColumn("{task.completed:.0f}/{task.total:.0f}", style="bold"),
                TextColumn("{task.fields[status]}"),
                console=self.console,
                refresh_per_second=4,
                expand=True,
            )
            self.task = self.bar.add_task(
                self.label, total=self.total, completed=self.finished, status="first step ..."
            )
            self.bar.start()
        else:
            resumed = f", resumed after step {self.finished}" if self.finished else ""
            self.print(f"{self.label}: {counted(self.total, 'optimizer step')}{resumed}")

    def due(self, trainer: L.Trainer, module: MultimodalModule) -> bool:
        return False

    def on_step_end(self, trainer: L.Trainer, module: MultimodalModule, step: Step) -> None:
        self.finished = step.number - module.first_step
        self.loss = step.loss if self.loss is None else SMOOTH * self.loss + (1 - SMOOTH) * step.loss
        self.steps.append(step)
        now = time.monotonic()
        if self.finished == self.resumed_at + 1:
            self.started = now  # the first step compiles and fills caches, which would distort the time left
        if not self.enabled:
            return
        if self.bar is not None:
            self.bar.update(self.task, completed=self.finished, status=self.status(now))
        elif now - self.last_line >= self.every_seconds or self.finished in (self.resumed_at + 1, self.total):
            self.last_line = now
            self.print(f"{self.label}  step {self.finished}/{self.total}  {self.status(now)}")

    def status(self, now: float) -> str:
        """Return the text of the bar: loss, speed and times left."""
        # The first step includes compilation, so it counts only while there is no other
        warm = self.finished - self.resumed_at > WINDOW or len(self.steps) == 1
        steps = list(self.steps)[0 if warm else 1 :]
        speed = sum(s.tokens for s in steps) / max(sum(s.seconds for s in steps), 1e-9)
        text = f"loss {self.loss:.3f}  {speed:,.0f} tokens/s{throughput_text(steps)}"
        if self.finished >= self.total:
            return f"{text}  done"
        measured = self.finished - self.resumed_at - 1
        if measured < 1:
            return text
        per_step = (now - self.started) / measured
        left = per_step * (self.total - self.finished)
        text += f"  {clock(left)} left"
        if not self._later():
            return text
        more = ">" if None in self._later() else ""
        # Later stages may be faster or slower; the estimate assumes the pace of this stage
        return f"{text}, recipe {more}{clock(left + per_step * sum(steps or 0 for steps in self._later()))}"

    def _later(self) -> list[int | None]:
        """Return the optimizer steps of each later stage; None if unknown."""
        names = [name for name, _ in self.stages]
        return [steps for _, steps in self.stages[names.index(self.name) + 1 :]] if self.name in names else []

    def on_train_end(self, trainer: L.Trainer, pl_module: MultimodalModule) -> None:
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: MultimodalModule, exception: BaseException) -> None:
        self._close()  # an open bar hides the cursor and garbles the traceback

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        if self.bar is not None:
            self.bar.console.print(*args, markup=False, highlight=False)
        elif self.enabled:
            file = self.console.file if self.console else None
            print(*args, **{"file": file, "flush": True, **kwargs})


def throughput_text(steps: Sequence[Step]) -> str:
    """Return the part of the bar's text about images, MFU, waiting and memory; "" if no observer measures them."""
    if not steps or "images" not in steps[-1].figures:
        return ""
    seconds = max(sum(step.seconds for step in steps), 1e-9)
    images, waiting = (sum(step.figures[name] for step in steps) for name in ("images", "data_wait"))
    text = f"  {images / seconds:,.1f} images/s  {waiting / seconds:.0%} waiting"
    mfu = sum(step.figures["mfu"] * step.seconds for step in steps) / seconds
    text += f"  MFU {mfu:.0%}" if mfu == mfu else ""
    return f"{text}  {steps[-1].figures['peak_memory_mb'] / 1024:.1f} GB"


def stage_label(name: str, names: Sequence[str]) -> str:
    """Return the label of a stage, such as "pretrain 1/2"; the name alone if it is not among `names`."""
    return f"{name} {names.index(name) + 1}/{len(names)}" if name in names else name


def clock(seconds: float) -> str:
    """Format a duration: 0:07, 12:30, 3:05:00."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
