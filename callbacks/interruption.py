"""Ends a run when a signal or a time limit asks for it: at the next step boundary, on every rank, with a checkpoint."""

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

from callbacks.checkpointing import Checkpointing
from callbacks.steps import Step, StepObserver
from lit_mm.module import MultimodalModule
from lit_mm.run.interruption import HEARD, Interrupted, say

TWICE = 2.0  # seconds between two Ctrl+C that are meant as two: a terminal and a launcher may both deliver the first


class Interruption(StepObserver):
    """Hears SIGTERM, SIGUSR1 (SLURM's warning before the time limit) and Ctrl+C, from `with` to its end.

    While a stage trains, a signal on any rank ends the run after the optimizer step that is being computed: all ranks
    learn of it in the reduction that step makes anyway, save one checkpoint of it, and leave by `Interrupted`. The last
    step of a stage is left to the stage's end, which saves and examines. Outside training there is nothing to save:
    the process leaves at once. A second Ctrl+C leaves at once, too, without saving.

    Lightning's own handlers, which save in the middle of whatever is happening, are replaced. Put this behind
    `Checkpointing` in `Trainer.callbacks`.

    A time limit ends the run in the same way, and a stage that ends behind it is the last of the launch.

    Args:
        checkpointing: saves.
        seconds: time limit, counted from now; None for no limit.
    """

    def __init__(self, checkpointing: Checkpointing, seconds: float | None = None) -> None:
        self.checkpointing = checkpointing
        self.deadline = math.inf if seconds is None else time.monotonic() + seconds
        self.received: dict[signal.Signals, float] = {}  # when each came first
        self.training = False
        self.leaving = False
        self.rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))
        self._process = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    # --- hearing ---------------------------------------------------------------------------------------------------
    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # a sweep's agent may run us in a thread of its own
            self._before = {number: signal.getsignal(number) for number in HEARD}
            self._hear()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self) -> None:
        for number in self._before:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a loader's worker, forked with our handlers: it ends with its trainer
        received, now = signal.Signals(number), time.monotonic()
        again = received in self.received
        if again and received == signal.SIGINT and now - self.received[received] > TWICE:
            raise KeyboardInterrupt
        self.received.setdefault(received, now)
        if self.leaving:
            return  # srun and torchrun end the other ranks when one has ended; this one may still have to requeue
        if not self.training:
            self.leaving = True
            raise Interrupted(self.received, "outside training", self.rank)
        if not again and (self.rank == 0 or received != signal.SIGINT):
            more = " (Ctrl+C again stops at once, without saving)" if received == signal.SIGINT else ""
            say(f"lit_mm: rank {self.rank} received {received.name}: saving when this step is over, then ending{more}")

    # --- acting ----------------------------------------------------------------------------------------------------
    def on_stage_start(self, trainer: L.Trainer, module: MultimodalModule) -> None:
        self.rank = trainer.global_rank
        self._hear()  # Lightning has put its own in place
        self.training = True

    def wants_to_stop(self) -> bool:
        return bool(self.received) or time.monotonic() > self.deadline

    def on_step_end(self, trainer: L.Trainer, module: MultimodalModule, step: Step) -> None:
        if step.stop and trainer.global_step < module.total_steps:
            self.checkpointing.save(trainer, module)
            self._leave(trainer, module)

    def on_train_end(self, trainer: L.Trainer, pl_module: MultimodalModule) -> None:
        if sum(self._heard_anywhere(trainer)):
            self._leave(trainer, pl_module)
        self.training = False
        if self.received:  # since the ranks were asked
            self.leaving = True
            raise Interrupted(self.received, f"after stage {pl_module.stage.name!r}, which is saved", self.rank)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.training = False

    def _leave(self, trainer: L.Trainer, module: MultimodalModule) -> None:
        *heard, late = self._heard_anywhere(trainer)
        signals = [number for number, count in zip(HEARD, heard, strict=True) if count]
        outcome = (
            f"after step {trainer.global_step} of {module.total_steps} of stage {module.stage.name!r}, which is saved"
        )
        raise Interrupted(signals, outcome, trainer.global_rank, together=True, out_of_time=late > 0)

    def _heard_anywhere(self, trainer: L.Trainer) -> list[float]:
        """For each of the signals that are heard, how many ranks have received it; and how many are out of time."""
        flags = [*(number in self.received for number in HEARD), time.monotonic() > self.deadline]
        mine = torch.tensor([float(flag) for flag in flags], device=trainer.strategy.root_device)
        return trainer.strategy.reduce(mine, reduce_op="sum").tolist()
