"""Measures each optimizer step once, summed over micro-batches and ranks, and reports it to all observers."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

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
        learning_rates: part -> learning rate of this step; 0 for a frozen part.
        stop: True if an observer on any rank wants the run to end here; all ranks have the same value.
        losses: objective of the stage -> loss without its weight.
        samples: digest of the ids of the step's samples over all ranks, 12 hexadecimal digits. It depends neither on
            the split of the step nor on the order of the samples in it.
        figures: further figures, which observers compute; see `StepObserver.figures_of_step`.
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


class StepObserver(L.Callback):
    """The base of callbacks that act once per optimizer step.

    The first observer of a Trainer measures each step and calls all observers in the order of `Trainer.callbacks`. A
    step thus costs one reduction and one wait for the device, whatever the number of observers. Every hook runs on
    every rank.
    """

    def on_stage_start(self, trainer: L.Trainer, module: MultimodalModule) -> None:
        """Act before the training of a stage starts or resumes; `module.step` steps are finished."""

    def on_step_end(self, trainer: L.Trainer, module: MultimodalModule, step: Step) -> None:
        """Act after an optimizer step; `module.step == step.number`."""

    figure_names: tuple[str, ...] = ()

    def numbers_of_step(self, trainer: L.Trainer) -> Sequence[float]:
        """Numbers of this rank about the step that ends, as many on every rank. They are summed over ranks."""
        return ()

    def figures_of_step(self, trainer: L.Trainer, sums: Sequence[float], seconds: float) -> dict[str, float]:
        """Compute the entries `figure_names` of `Step.figures`.

        Args:
            trainer: trainer of the stage.
            sums: sums of `numbers_of_step` over all ranks.
            seconds: duration of the step.
        """
        return {}

    def wants_to_stop(self) -> bool:
        """True if the run should end after this step. One True on any rank sets `Step.stop` on all ranks."""
        return False

    # --- measurement, by the first observer alone -----------------------------------------------------------------
    def on_train_start(self, trainer: L.Trainer, pl_module: MultimodalModule) -> None:
        self._first = observers(trainer)[0] is self
        self._parts = pl_module.base_parts()
        self._finished = trainer.global_step
        self._since: float | None = None
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
        if trainer.global_step == self._finished:
            self._ended, trainer.should_stop = self._ended or trainer.should_stop, False  # a step is finished first
            return
        trainer.should_stop = trainer.should_stop or self._ended
        loss, tokens, stop, ends, *sums = self._reduce(trainer)
        trainer.should_stop = ends > 0  # on every rank, whichever has a callback that ends the stage
        seconds = time.perf_counter() - self._since
        step = Step(
            number=pl_module.step,
            stage=pl_module.current_stage.name,
            loss=loss,
            tokens=int(tokens),
            seconds=seconds,
            learning_rates=self._rates or {},
            stop=stop > 0,
            losses=dict(zip(pl_module.micro_losses, sums[LIMBS + sum(self._shares) :], strict=True)),
            samples=digest_of_limbs(sums[:LIMBS]),
            figures=self._figures(trainer, sums[LIMBS:], seconds),
        )
        self._finished = trainer.global_step
        self._begin_step()
        for observer in observers(trainer):
            observer.on_step_end(trainer, pl_module, step)
        self._since = time.perf_counter()

    def _begin_step(self) -> None:
        self._losses: list[Tensor] = []
        self._by_objective: list[Tensor] = []
        self._tokens = self._id_digests = 0
        self._rates: dict[str, float] | None = None
        self._ended = False

    def _reduce(self, trainer: L.Trainer) -> list[float]:
        """Sums over micro-batches and ranks: loss, tokens, observers that want the run to end, callbacks that end the
        stage, limbs of the samples' digest, the numbers of the observers, and the loss of each objective.
        """
        wide = torch.float32 if trainer.strategy.root_device.type == "mps" else torch.float64
        wishes = sum(observer.wants_to_stop() for observer in observers(trainer))
        loss = torch.stack(self._losses).to(wide).sum(dim=0, keepdim=True)
        losses = torch.stack(self._by_objective).to(wide).sum(dim=0)
        counts = [self._tokens, wishes, trainer.should_stop, *limbs_of(self._id_digests)]
        numbers = [observer.numbers_of_step(trainer) for observer in observers(trainer)]
        self._shares = [len(each) for each in numbers]
        sums = torch.cat([loss, loss.new_tensor([*counts, *chain(*numbers)]), losses])  # one copy to the device
        return trainer.strategy.reduce(sums, reduce_op="sum").tolist()

    def _figures(self, trainer: L.Trainer, sums: Sequence[float], seconds: float) -> dict[str, float]:
        """Hand the sums of their numbers to the observers, and collect their figures."""
        figures: dict[str, float] = {}
        start = 0
        for observer, count in zip(observers(trainer), self._shares, strict=True):
            figures |= observer.figures_of_step(trainer, sums[start : start + count], seconds)
            start += count
        return figures


def data_module(trainer: L.Trainer) -> L.LightningDataModule | None:
    """The data module of a Trainer; None if it has none."""
    return trainer.datamodule  # pyrefly: ignore[missing-attribute]  # Lightning sets it


def observers(trainer: L.Trainer) -> list[StepObserver]:
    """The observers among the callbacks of a Trainer, in order."""
    return [callback for callback in callbacks_of(trainer) if isinstance(callback, StepObserver)]


def callbacks_of(trainer: L.Trainer) -> list[L.Callback]:
    """The callbacks of a Trainer, in order."""
    return trainer.callbacks  # pyrefly: ignore[missing-attribute]  # Lightning sets it
