"""Ends a run after a signal or time limit: at the next step boundary, on all ranks, with a checkpoint of that step."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

import lightning as L
import torch

from lit_mm.callbacks.checkpointing import Checkpointing
from lit_mm.callbacks.steps import Step, StepObserver
from lit_mm.module import MultimodalModule
from lit_mm.run.interruption import HEARD, Interrupted, say

TWICE = 2.0  # seconds after which a Ctrl+C counts as a second one: terminal and launcher may both deliver the first


class Interruption(StepObserver):
    """Handles SIGTERM, SIGUSR1 (SLURM's warning before the time limit), SIGHUP (the terminal was closed) and Ctrl+C.

    The handlers are installed inside a `with` block. Under nohup, SIGHUP stays ignored.

    While a stage trains, a signal on any rank ends the run after the current optimizer step, or on several GPUs after
    the next: the reduction of the step informs all ranks, which save one checkpoint and raise `Interrupted`. At the
    last step of a stage, the end of the stage saves and examines first, also if a callback ends the stage early.
    Outside training there is nothing to save, and the process ends at once. A second Ctrl+C ends the process at once,
    without saving.

    This replaces Lightning's handlers, which save at any point of a step. It must follow `Checkpointing` in
    `Trainer.callbacks`.

    A time limit ends the run in the same way. If a stage ends after the limit, no further stage starts.

    Args:
        checkpointing: callback that saves the checkpoint.
        seconds: time limit, counted from now; None for no limit.
    """

    def __init__(self, checkpointing: Checkpointing, seconds: float | None = None) -> None:
        self.checkpointing = checkpointing
        self.deadline = math.inf if seconds is None else time.monotonic() + seconds
        self.received: dict[signal.Signals, float] = {}  # signal -> time of its first arrival, monotonic seconds
        self.training = False
        self.leaving = False
        self.rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))
        self._process = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    # --- signals ---------------------------------------------------------------------------------------------------
    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # a sweep's agent may run us in another thread
            handlers = {number: signal.getsignal(number) for number in HEARD}
            self._before = {
                number: handler
                for number, handler in handlers.items()
                if number != signal.SIGHUP or handler != signal.SIG_IGN
            }
            self._install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _install(self) -> None:
        for number in self._before:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a forked worker of a loader inherits the handlers; it ends with its trainer
        received, now = signal.Signals(number), time.monotonic()
        again = received in self.received
        if again and received == signal.SIGINT and now - self.received[received] > TWICE:
            raise KeyboardInterrupt
        self.received.setdefault(received, now)
        if self.leaving:
            return  # srun and torchrun end all ranks when one has ended; this rank may still have to requeue
        if not self.training:
            self.leaving = True
            raise Interrupted(self.received, "outside training", self.rank)
        if not again and (self.rank == 0 or received != signal.SIGINT):
            more = " (Ctrl+C again stops at once, without saving)" if received == signal.SIGINT else ""
            say(f"lit_mm: rank {self.rank} received {received.name}: saving at the end of a step, then ending{more}")

    # --- ends of runs ----------------------------------------------------------------------------------------------
    def on_stage_start(self, trainer: L.Trainer, module: MultimodalModule) -> None:
        self.rank = trainer.global_rank
        self._install()  # Lightning has installed its own handlers
        self.training = True

    def wants_to_stop(self) -> bool:
        return bool(self.received) or time.monotonic() > self.deadline

    def due(self, trainer: L.Trainer, module: MultimodalModule) -> bool:
        return False

    def on_step_end(self, trainer: L.Trainer, module: MultimodalModule, step: Step) -> None:
        if step.stop and trainer.global_step < module.total_steps and not trainer.should_stop:
            self.checkpointing.save(trainer, module)
            self._leave(trainer, module)

    def on_train_end(self, trainer: L.Trainer, pl_module: MultimodalModule) -> None:
        if sum(self._counts(trainer)):
            self._leave(trainer, pl_module)
        self.training = False
        if self.received:  # it arrived after the ranks have agreed
            self.leaving = True
            raise Interrupted(self.received, f"after stage {pl_module.current_stage.name!r}, which is saved", self.rank)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.training = False

    def _leave(self, trainer: L.Trainer, module: MultimodalModule) -> None:
        *ranks_by_signal, late = self._counts(trainer)
        signals = [number for number, count in zip(HEARD, ranks_by_signal, strict=True) if count]
        stage, step = module.current_stage.name, trainer.global_step
        outcome = f"after step {step} of {module.total_steps} of stage {stage!r}, which is saved"
        raise Interrupted(signals, outcome, trainer.global_rank, together=True, out_of_time=late > 0)

    def _counts(self, trainer: L.Trainer) -> list[float]:
        """Return the number of ranks that have received each of the signals, and of those that are out of time."""
        flags = [*(number in self.received for number in HEARD), time.monotonic() > self.deadline]
        counts = torch.tensor([float(flag) for flag in flags], device=trainer.strategy.root_device)
        return trainer.strategy.reduce(counts, reduce_op="sum").tolist()
