"""Measures each optimizer step once, summed over micro-batches and ranks, and reports it to all observers.

On a GPU the figures of a step are read while the next step runs, so that the host need not wait for the device. They
are read at once at the end of a step in which an observer acts on the model, such as one that is saved.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor

from lit_mm.module import MultimodalModule
from lit_mm.samples.batch import Batch


@dataclass(frozen=True, slots=True)
class Step:
    """One finished optimizer step.

    Attributes:
        number: number of the step, counted through all stages from 1.
        stage: name of the stage.
        loss: weighted sum of the stage's objectives over all ranks and micro-batches.
        tokens: number of useful tokens over all ranks.
        seconds: duration with the wait for data (except for the first step of a launch), without the work of observers.
            On a GPU it ends when the figures of the step before have arrived: sums over steps are exact, and the time
            of a single step may stand in the row behind it.
        learning_rates: part -> learning rate of this step; 0 for a frozen part.
        stop: True if an observer on any rank wants the run to end here; all ranks have the same value.
        losses: objective of the stage -> loss without its weight.
        samples: digest of the ids of the step's samples over all ranks, 12 hexadecimal digits. It depends neither on
            the split of the step nor on the order of the samples in it.
        figures: further figures, which observers compute; see `StepObserver.figures_of_step`.
        logged: name -> value of what callbacks have logged with `pl_module.log` by the end of this step.
        last_samples: ids of the samples in this rank's last micro-batch.
    """

    number: int
    stage: str
    loss: float
    tokens: int
    seconds: float
    learning_rates: dict[str, float]
    stop: bool = False
    losses: dict[str, float] = field(default_factory=dict)
    samples: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    logged: dict[str, Any] = field(default_factory=dict)
    last_samples: tuple[str, ...] = ()


@dataclass(slots=True)
class Measured:
    """A step whose sums are on their way from the device.

    Attributes:
        step: the step without what its sums tell.
        objectives: names of the stage's objectives, in the order of their sums.
        shares: number of host sums and of device sums of every observer.
        sums: sums over micro-batches and ranks, in memory of the host; they are valid when `event` has happened.
        event: event of the copy from the device; None for sums that were computed on the host.
        seconds: duration of the step.
    """

    step: Step
    objectives: tuple[str, ...]
    shares: tuple[tuple[int, int], ...]
    sums: Tensor
    event: torch.cuda.Event | None
    seconds: float = 0.0

    def read(self) -> list[float]:
        """Return the sums; waits for the device if they have not arrived."""
        if self.event is not None:
            self.event.synchronize()
        return self.sums.tolist()


def reads_late(trainer: L.Trainer) -> bool:
    """True on devices that work behind the host's back, where reading a number at once would make the host wait."""
    return trainer.strategy.root_device.type == "cuda"


def copy_to_host(sums: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Start the copy of sums to the host. Returns the copy, and the event of its arrival for sums of a GPU."""
    if sums.device.type != "cuda":
        return sums, None
    copy = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=True)
    copy.copy_(sums, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return copy, event


LIMBS, BITS = 4, 12  # a sum of digests is reduced over ranks in limbs, each of which a float32 sums exactly


def digest_of_id(sample_id: str) -> int:
    """A 48-bit digest of a sample's id."""
    return int.from_bytes(hashlib.blake2b(sample_id.encode(), digest_size=LIMBS * BITS // 8).digest(), "big")


def limbs_of(digest: int) -> list[int]:
    """The lowest 48 bits of a sum of digests, in numbers of 12 bits."""
    return [digest >> BITS * place & (1 << BITS) - 1 for place in range(LIMBS)]


def digest_of_limbs(limbs: Sequence[float]) -> str:
    """The sum of digests whose limbs were summed over ranks, as hexadecimal digits."""
    total = sum(int(limb) << BITS * place for place, limb in enumerate(limbs))
    return f"{total % (1 << LIMBS * BITS):0{LIMBS * BITS // 4}x}"


class Numbers(NamedTuple):
    """Numbers of an observer about a step, which are summed over ranks.

    Attributes:
        on_host: numbers.
        on_device: [micro-batches, n] numbers on the rank's device, which are summed over its micro-batches, too.
    """

    on_host: Sequence[float] = ()
    on_device: Tensor | None = None


class StepObserver(L.Callback):
    """The base of callbacks that act once per optimizer step.

    The first observer of a Trainer measures each step and calls all observers in the order of `Trainer.callbacks`. A
    step thus costs one reduction, whatever the number of observers. Every hook runs on every rank.
    """

    def on_stage_start(self, trainer: L.Trainer, module: MultimodalModule) -> None:
        """Act before the training of a stage starts or resumes; `module.step` steps are finished."""

    def on_step_end(self, trainer: L.Trainer, module: MultimodalModule, step: Step) -> None:
        """Act after an optimizer step. `module.step == step.number` if this observer is `due` at the step.

        On a GPU the next step has ended already if no observer is due.
        """

    def due(self, trainer: L.Trainer, module: MultimodalModule) -> bool:
        """True if this observer acts on the model, or on the run, at the step that has just ended.

        The figures of the step are then read at once. All ranks must agree. An observer that only writes figures down
        returns False.
        """
        return True

    figure_names: tuple[str, ...] = ()

    def numbers_of_step(self, trainer: L.Trainer) -> Numbers:
        """Numbers of this rank about the step that has just ended, as many on every rank."""
        return Numbers()

    def figures_of_step(self, trainer: L.Trainer, sums: Sequence[float], seconds: float) -> dict[str, float]:
        """Compute the entries `figure_names` of `Step.figures`, before `on_step_end` of the same step.

        Args:
            trainer: trainer of the stage.
            sums: sums of `numbers_of_step` over all ranks, those of the host first.
            seconds: duration of the step.
        """
        return {}

    def wants_to_stop(self) -> bool:
        """True if the run should end after this step. One True on any rank sets `Step.stop` on all ranks.

        On a GPU with several ranks, `Step.stop` is set one step later.
        """
        return False

    # --- measurement, by the first observer alone -----------------------------------------------------------------
    def on_train_start(self, trainer: L.Trainer, pl_module: MultimodalModule) -> None:
        self._first = observers(trainer)[0] is self
        self._parts = pl_module.base_parts()
        self._finished = self._start = trainer.global_step
        self._since: float | None = None
        self._unread: Measured | None = None
        self._begin_step()
        self.on_stage_start(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: MultimodalModule, batch: Batch, batch_idx: int
    ) -> None:
        # Not in on_train_start, because callbacks after this one may examine or hash there
        self._since = self._since or time.perf_counter()
        if self._first:
            # The step of what callbacks log with `pl_module.log`; Lightning counts the steps of a stage from 0
            trainer.fit_loop.epoch_loop._batches_that_stepped = pl_module.step + 1
        # Read before the step, because Lightning advances the schedule before on_train_batch_end
        if self._first and self._rates is None:
            rates = pl_module.learning_rates
            self._rates = {part: float(rates.get(part, 0.0)) for part in self._parts}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: MultimodalModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if not self._first:
            return
        # Lists of device scalars: a read here would wait for the device once per micro-batch
        self._losses.append(pl_module.micro_loss)
        self._tokens += batch.num_tokens
        self._id_digests += sum(map(digest_of_id, batch.sample_ids))
        self._by_objective.append(torch.stack(list(pl_module.micro_losses.values())))
        # A step is finished first, and then by all ranks; then a callback that sets `should_stop` ends the stage
        self._ended, trainer.should_stop = self._ended or trainer.should_stop, False
        if trainer.global_step == self._finished:
            return
        measured = self._measure(trainer, pl_module, batch)
        now = not reads_late(trainer) or self._must_read(trainer, pl_module)
        self._finished = trainer.global_step
        self._begin_step()
        stop = False
        reports: list[tuple[Measured, list[float]]] = []
        if self._unread is not None:
            reports.append((self._unread, self._unread.read()))
            stop, trainer.should_stop = wishes_of(reports[0][1])
            self._unread = None
        if now or stop or trainer.should_stop:
            reports.append((measured, measured.read()))
            wish, end = wishes_of(reports[-1][1])
            stop, trainer.should_stop = stop or wish, trainer.should_stop or end
        measured.seconds = time.perf_counter() - self._since  # with the waits for the device
        for each, sums in reports:
            self._report(trainer, pl_module, each, sums, stop=stop and each is measured)
        if not reports or reports[-1][0] is not measured:
            self._unread = measured
        self._since = time.perf_counter()

    def _begin_step(self) -> None:
        self._losses: list[Tensor] = []
        self._by_objective: list[Tensor] = []
        self._tokens = self._id_digests = 0
        self._rates: dict[str, float] | None = None
        self._ended = False

    def _must_read(self, trainer: L.Trainer, module: MultimodalModule) -> bool:
        """True if the step that has just ended cannot be read later: the same answer on all ranks."""
        if trainer.world_size == 1 and (self._ended or any(each.wants_to_stop() for each in observers(trainer))):
            return True
        if self._finished == self._start:  # its time is left out of averages, so it must not reach the second row
            return True
        last = trainer.global_step >= module.total_steps
        return last or any(observer.due(trainer, module) for observer in observers(trainer))

    def _measure(self, trainer: L.Trainer, module: MultimodalModule, batch: Batch) -> Measured:
        """Sum over micro-batches and ranks, and start the copy of the sums to the host.

        The sums: loss, tokens, observers that want the run to end, callbacks that end the stage, limbs of the samples'
        digest, the numbers of the observers on the host and then on the device, and the loss of each objective.
        """
        device = trainer.strategy.root_device
        wide = torch.float32 if device.type == "mps" else torch.float64
        wishes = sum(observer.wants_to_stop() for observer in observers(trainer))
        loss = torch.stack(self._losses).to(wide).sum(dim=0, keepdim=True)
        losses = torch.stack(self._by_objective).to(wide).sum(dim=0)
        counts = [self._tokens, wishes, self._ended, *limbs_of(self._id_digests)]
        numbers = [observer.numbers_of_step(trainer) for observer in observers(trainer)]
        on_host = torch.tensor([*counts, *chain(*(each.on_host for each in numbers))], dtype=wide)
        on_device = [each.on_device.to(wide).sum(dim=0) for each in numbers if each.on_device is not None]
        sums = torch.cat([loss, on_host.to(device, non_blocking=True), *on_device, losses])
        if trainer.world_size > 1:
            torch.distributed.all_reduce(sums)  # Lightning's `reduce` has a barrier, which waits for the device
        step = Step(
            number=module.step,
            stage=module.current_stage.name,
            loss=math.nan,
            tokens=0,
            seconds=math.nan,
            learning_rates=self._rates or {},
            logged=dict(trainer.logged_metrics),
            last_samples=tuple(batch.sample_ids),
        )
        shares = tuple((len(host), 0 if device is None else device.shape[1]) for host, device in numbers)
        return Measured(step, tuple(module.micro_losses), shares, *copy_to_host(sums))

    def _report(
        self, trainer: L.Trainer, module: MultimodalModule, measured: Measured, sums: Sequence[float], stop: bool
    ) -> None:
        """Report a step to all observers."""
        loss, tokens, _, _, *rest = sums
        limbs, rest = rest[:LIMBS], rest[LIMBS:]
        hosts, devices = (sum(share) for share in zip(*measured.shares, strict=True))
        numbers, tensors, losses = rest[:hosts], rest[hosts : hosts + devices], rest[hosts + devices :]
        figures: dict[str, float] = {}
        for observer, (host, device) in zip(observers(trainer), measured.shares, strict=True):
            of_observer = [*numbers[:host], *tensors[:device]]
            numbers, tensors = numbers[host:], tensors[device:]
            figures |= observer.figures_of_step(trainer, of_observer, measured.seconds)
        step = replace(
            measured.step,
            loss=loss,
            tokens=int(tokens),
            seconds=measured.seconds,
            stop=stop,
            losses=dict(zip(measured.objectives, losses, strict=True)),
            samples=digest_of_limbs(limbs),
            figures=figures,
        )
        for observer in observers(trainer):
            observer.on_step_end(trainer, module, step)


def wishes_of(sums: Sequence[float]) -> tuple[bool, bool]:
    """Return whether an observer on any rank wants the run to end, and whether a callback on any ends the stage."""
    return sums[2] > 0, sums[3] > 0


def data_module(trainer: L.Trainer) -> L.LightningDataModule | None:
    """The data module of a Trainer; None if it has none."""
    return trainer.datamodule  # pyrefly: ignore[missing-attribute]  # Lightning sets it


def observers(trainer: L.Trainer) -> list[StepObserver]:
    """The observers among the callbacks of a Trainer, in order."""
    return [callback for callback in callbacks_of(trainer) if isinstance(callback, StepObserver)]


def callbacks_of(trainer: L.Trainer) -> list[L.Callback]:
    """The callbacks of a Trainer, in order."""
    return trainer.callbacks  # pyrefly: ignore[missing-attribute]  # Lightning sets it
