"""Ends a job that hangs, and says which rank was doing what, with which samples."""

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

from lit_mm.errors import UserError
from lit_mm.module import MultimodalModule
from lit_mm.run.interruption import STALLED, say
from lit_mm.samples.batch import Batch

LISTED = 8  # sample ids in a message


@dataclass(frozen=True)
class Doing:
    """What a rank is doing, and with what.

    Attributes:
        rank: of all `ranks`.
        process: host and process id.
        stage: "" outside a stage.
        step: optimizer step of the stage that is being computed, from 1.
        what: in words.
        samples: of the current micro-batch.
        seconds: how long it has been at it, when this was told.
        told: when that was, seconds since the epoch.
    """

    rank: int
    ranks: int
    process: str
    stage: str = ""
    step: int = 0
    what: str = "starting"
    samples: tuple[str, ...] = ()
    seconds: float = 0.0
    told: float = 0.0

    def __str__(self) -> str:
        ids = ", ".join(self.samples[:LISTED]) + (", ..." if len(self.samples) > LISTED else "")
        return (
            f"rank {self.rank} of {self.ranks} ({self.process}): stage {self.stage!r}, step {self.step}, {self.what} "
            f"for {self.seconds:.0f} s; samples: {ids or 'none yet'}"
        )


class Watchdog(L.Callback):
    """A thread on every rank that ends the process when nothing has moved on it for `seconds`.

    Moving is: a batch arrives, a part runs forward, backward ends, the optimizer steps. A rank that waits in a
    collective does not move, nor does the one it waits for, so both end; each tells what it was doing, what it knows
    of the others, and where its threads are. The first to end tells the others through the process group's store, so
    that they end with it. A thread that cannot run, because something holds the interpreter's lock, is backed by one of
    C (`faulthandler`), which ends the process all the same.

    torch has limits of its own for a collective (Lightning sets 30 minutes), which name nobody. They are moved behind
    this one.

    Args:
        seconds: without any movement. Generous: a checkpoint is written and a first step compiled in that time.
    """

    def __init__(self, seconds: float = 1800.0) -> None:
        if seconds <= 0:
            raise UserError(f"`step_timeout` is a number of seconds above 0, got {seconds}")
        self.seconds = seconds
        self.doing = Doing(0, 1, f"{socket.gethostname()}, process {os.getpid()}")
        self._moved = time.monotonic()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._store: dist.Store | None = None
        self._hooks: list[Any] = []

    # --- what moves ------------------------------------------------------------------------------------------------
    def _at(self, what: str, **changes: Any) -> None:
        self._moved = time.monotonic()
        self.doing = replace(self.doing, what=what, **changes)

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
        # A collective fails at once when the rank that hung has ended: that is what happened, not a broken connection
        now = replace(self.doing, seconds=time.monotonic() - self._moved, told=time.time())
        if self._thread is not None and (ended := self._exchange(now)):
            self._end(f"rank {ended} hangs and has ended", now)
        self.stop()

    @contextmanager
    def watching(self, module: MultimodalModule, what: str) -> Iterator[None]:
        """Watch something else than training: each forward of a part counts as movement."""
        self.start(module, what)
        try:
            yield
        finally:
            self.stop()

    # --- watching --------------------------------------------------------------------------------------------------
    def start(self, module: MultimodalModule, what: str, **changes: Any) -> None:
        """Begin to watch."""
        stage = module.stage.name if module.stage else ""
        world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self._at(what, stage=stage, rank=world[0], ranks=world[1], **changes)
        if self._thread is not None:
            return
        # A connection of its own: a call that waits holds the lock of the one it is made on
        if dist.is_initialized():
            self._store = dist.distributed_c10d._get_default_store().clone()
            self._store.set_timeout(timedelta(seconds=5))
        self._hooks = [part.register_forward_pre_hook(self._forward) for part in module.modules_by_part().values()]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Watch no longer."""
        if self._thread is not None:
            self._over.set()
            self._thread.join()
            self._thread = None
            faulthandler.cancel_dump_traceback_later()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _forward(self, *_: object) -> None:
        self._moved = time.monotonic()

    def _watch(self) -> None:
        every = min(5.0, self.seconds / 10)
        while True:
            faulthandler.dump_traceback_later(self.seconds + 4 * every, exit=True, file=sys.__stderr__)
            now = replace(self.doing, seconds=time.monotonic() - self._moved, told=time.time())
            ended = self._exchange(now)
            if now.seconds > self.seconds:
                self._end(f"nothing has moved for {self.seconds:g} s (`step_timeout`)", now)
            if ended:
                self._end(f"rank {ended} hangs and has ended", now)
            if self._over.wait(every):
                return

    def _exchange(self, now: Doing) -> str:
        """Tell the other ranks what this one does. Returns the rank that has ended, "" for none."""
        if self._store is None:
            return ""
        try:
            self._store.set(f"watchdog/{now.rank}", json.dumps(asdict(now)))
            return self._store.get("watchdog/ended").decode() if self._store.check(["watchdog/ended"]) else ""
        except dist.DistError:  # the process that keeps the store is gone; what this one waits for will not come
            self._store = None
            return ""

    def _end(self, why: str, now: Doing) -> None:
        others = self._others(now)
        try:
            if self._store is not None:
                self._store.set("watchdog/ended", str(now.rank))
        finally:
            there = [f"  {now.told - other.told:.0f} s ago, {other}" for other in others]
            say("\n".join([f"lit_mm: the job hangs: {why}. Here, {now}", *there]))
            faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
            os._exit(STALLED)

    def _others(self, now: Doing) -> list[Doing]:
        """What the other ranks last told, those that are furthest behind first."""
        reports = []
        for rank in range(now.ranks):
            key = f"watchdog/{rank}"
            try:
                if rank != now.rank and self._store is not None and self._store.check([key]):
                    report = json.loads(self._store.get(key))
                    reports.append(Doing(**report | {"samples": tuple(report["samples"])}))
            except dist.DistError:
                self._store = None
        return sorted(reports, key=lambda other: other.step)


def postpone_torch(seconds: float) -> None:
    """Let a collective of the default group wait longer than the watchdog does."""
    dist.set_timeout(timedelta(seconds=1.5 * seconds + 60))
