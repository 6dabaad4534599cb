"""The watchdog ends a job that hangs and reports what each rank was doing, with which samples."""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any

import lightning as L
import torch.distributed as dist

from lit_mm.documents.printable import printable
from lit_mm.errors import UserError
from lit_mm.module import MultimodalModule
from lit_mm.run.interruption import STALLED, say
from lit_mm.samples.batch import Batch

LISTED = 8  # sample ids in a message


@dataclass(frozen=True)
class Activity:
    """A report of one rank's current activity.

    Attributes:
        rank: number of the rank.
        ranks: number of ranks.
        process: host and process id.
        stage: name of the stage; "" outside of stages.
        step: number of the current optimizer step of the stage, from 1.
        what: the activity in words.
        samples: ids of the samples of the current micro-batch.
        seconds: duration of the activity up to the report.
        time: time of the report, seconds since the epoch.
    """

    rank: int
    ranks: int
    process: str
    stage: str = ""
    step: int = 0
    what: str = "starting"
    samples: tuple[str, ...] = ()
    seconds: float = 0.0
    time: float = 0.0

    def __str__(self) -> str:
        ids = printable(", ".join(self.samples[:LISTED])) + (", ..." if len(self.samples) > LISTED else "")
        return (
            f"rank {self.rank} of {self.ranks} ({self.process}): stage {self.stage!r}, step {self.step}, {self.what} "
            f"for {self.seconds:.0f} s; samples: {ids or 'none yet'}"
        )


class Watchdog(L.Callback):
    """Ends the process of a rank if nothing has moved on it for `seconds`. A thread on every rank watches.

    Something moves if a batch arrives, a part runs forward, a backward pass ends, or the optimizer steps. A rank that
    waits in a collective does not move, nor does the rank for which it waits, so both end. Each prints its activity,
    the last reports of the others, and the stacks of its threads. The first rank to end tells the others through the
    process group's store, and they end with it. If something holds the interpreter's lock, the thread cannot run; a
    timer in C (`faulthandler`) then ends the process.

    torch has its own time limit for a collective (Lightning sets 30 minutes), whose error names no rank. That limit is
    raised above this one.

    Args:
        seconds: longest time without movement. It must cover the writing of a checkpoint and the compilation of a first
            step.
    Raises:
        UserError: the time is not positive.
    """

    def __init__(self, seconds: float = 1800.0) -> None:
        if seconds <= 0:
            raise UserError(f"`step_timeout` is a number of seconds above 0, got {seconds}")
        self.seconds = seconds
        self.activity = Activity(0, 1, f"{socket.gethostname()}, process {os.getpid()}")
        self._last_movement = time.monotonic()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._store: dist.Store | None = None
        self._hooks: list[Any] = []

    # --- movement --------------------------------------------------------------------------------------------------
    def _at(self, what: str, **changes: Any) -> None:
        self._last_movement = time.monotonic()
        self.activity = replace(self.activity, what=what, **changes)

    def on_fit_start(self, trainer: L.Trainer, pl_module: MultimodalModule) -> None:
        self.start(pl_module, "starting the stage", step=0)
        if dist.is_initialized():
            postpone_torch(self.seconds)

    def on_train_start(self, trainer: L.Trainer, pl_module: MultimodalModule) -> None:
        self._at("waiting for the first batch", step=trainer.global_step + 1)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: MultimodalModule, batch: Batch, batch_idx: int
    ) -> None:
        self._at("in the forward pass", step=trainer.global_step + 1, samples=batch.sample_ids)

    def on_before_backward(self, trainer: L.Trainer, pl_module: MultimodalModule, loss: Any) -> None:
        self._at("in the backward pass")

    def on_after_backward(self, trainer: L.Trainer, pl_module: MultimodalModule) -> None:
        self._at("behind the backward pass")

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: MultimodalModule, optimizer: Any) -> None:
        self._at("in the optimizer's step")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: MultimodalModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._at("in what follows a step (sums over ranks, observers) or waiting for the next batch")

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: MultimodalModule, checkpoint: dict[str, Any]) -> None:
        self._at("saving a checkpoint")

    def on_train_end(self, trainer: L.Trainer, pl_module: MultimodalModule) -> None:
        self._at("ending the stage")

    def teardown(self, trainer: L.Trainer, pl_module: MultimodalModule, stage: str) -> None:
        self.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        # A collective fails at once when a rank that hangs has ended; the message then names that rank
        now = self._report()
        if self._thread is not None and (ended := self._exchange(now)):
            self._end(f"rank {ended} hangs and has ended", now)
        self.stop()

    @contextmanager
    def watching(self, module: MultimodalModule, what: str) -> Iterator[None]:
        """Watch work other than training, in which each forward of a part counts as movement."""
        self.start(module, what)
        try:
            yield
        finally:
            self.stop()

    # --- watching --------------------------------------------------------------------------------------------------
    def start(self, module: MultimodalModule, what: str, **changes: Any) -> None:
        """Start the thread that watches."""
        stage = module.stage.name if module.stage else ""
        world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self._at(what, stage=stage, rank=world[0], ranks=world[1], **changes)
        if self._thread is not None:
            return
        # A separate connection, because a waiting call locks its connection
        if dist.is_initialized():
            self._store = dist.distributed_c10d._get_default_store().clone()
            self._store.set_timeout(timedelta(seconds=5))
        self._hooks = [part.register_forward_pre_hook(self._forward) for part in module.modules_by_part().values()]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread that watches."""
        if self._thread is not None:
            self._over.set()
            self._thread.join()
            self._thread = None
            faulthandler.cancel_dump_traceback_later()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _forward(self, *_: object) -> None:
        self._last_movement = time.monotonic()

    def _report(self) -> Activity:
        return replace(self.activity, seconds=time.monotonic() - self._last_movement, time=time.time())

    def _watch(self) -> None:
        every = min(5.0, self.seconds / 10)
        while True:
            faulthandler.dump_traceback_later(self.seconds + 4 * every, exit=True, file=sys.__stderr__)
            now = self._report()
            ended = self._exchange(now)
            if now.seconds > self.seconds:
                self._end(f"nothing has moved for {self.seconds:g} s (`step_timeout`)", now)
            if ended:
                self._end(f"rank {ended} hangs and has ended", now)
            if self._over.wait(every):
                return

    def _exchange(self, now: Activity) -> str:
        """Send this rank's report to the others. Returns the number of the rank that has ended, "" for none."""
        if self._store is None:
            return ""
        try:
            self._store.set(f"watchdog/{now.rank}", json.dumps(asdict(now)))
            return self._store.get("watchdog/ended").decode() if self._store.check(["watchdog/ended"]) else ""
        except dist.DistError:  # the process that keeps the store is gone, so there is nothing to exchange
            self._store = None
            return ""

    def _end(self, why: str, now: Activity) -> None:
        others = self._others(now)
        try:
            if self._store is not None:
                self._store.set("watchdog/ended", str(now.rank))
        finally:
            reports = [
                f"  {max(0.0, now.time - other.time):.0f} s ago, {other}" for other in others
            ]  # clocks may differ
            say("\n".join([f"lit_mm: the job hangs: {why}. Here, {now}", *reports]))
            faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
            os._exit(STALLED)

    def _others(self, now: Activity) -> list[Activity]:
        """Return the last reports of the other ranks, by step; the rank furthest behind comes first."""
        reports = []
        for rank in range(now.ranks):
            key = f"watchdog/{rank}"
            try:
                if rank != now.rank and self._store is not None and self._store.check([key]):
                    report = json.loads(self._store.get(key))
                    reports.append(Activity(**report | {"samples": tuple(report["samples"])}))
            except dist.DistError:
                self._store = None
        return sorted(reports, key=lambda other: other.step)


def postpone_torch(seconds: float) -> None:
    """Raise torch's time limit for collectives of the default group above that of the watchdog."""
    dist.set_timeout(timedelta(seconds=1.5 * seconds + 60))
