"""What an optimizer step was, told once to every callback that asks: summed over micro-batches and ranks."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
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
        number: counted through all stages, from 1.
        stage: name of its stage.
        loss: weighted sum of the stage's objectives, over all ranks and micro-batches.
        tokens: useful tokens of the step, over all ranks.
        seconds: what it took, waiting for data included (but for a launch's first step); what observers did is not.
        learning_rates: part -> the learning rate this step was made with; 0 for a frozen part.
        stop: an observer of some rank wants the run to end here; the same on every rank.
        losses: objective of the stage -> its loss, without its weight.
        samples: digest of the ids of the step's samples over all ranks, 12 hexadecimal digits. It depends neither on
            the split of the step nor on the order of the samples in it.
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
    """Base of the callbacks that act once per optimizer step.

    The first observer of a Trainer measures and tells the others in the order of `Trainer.callbacks`, so each step
    costs one reduction and one wait for the device, however many observers there are. Every hook runs on every rank.
    """

    def on_stage_start(self, trainer: L.Trainer, module: MultimodalModule) -> None:
        """Training of a stage is about to start or resume; `module.step` steps are finished."""

    def on_step_end(self, trainer: L.Trainer, module: MultimodalModule, step: Step) -> None:
        """An optimizer step is finished; `module.step == step.number`."""

    def wants_to_stop(self) -> bool:
        """Asked on every rank when a step is over. One yes, on any rank, is told to all of them by `Step.stop`."""
        return False

    # --- measuring: only the first observer does ------------------------------------------------------------------
    def on_train_start(self, trainer: L.Trainer, pl_module: MultimodalModule) -> None:
        self._first = next(callback for callback in trainer.callbacks if isinstance(callback, StepObserver)) is self
        self._parts = sorted(pl_module.parts())
        self._finished = trainer.global_step
        self._since: float | None = None
        self._begin_step()
        self.on_stage_start(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: MultimodalModule, batch: Batch, batch_idx: int
    ) -> None:
        # Not in on_train_start, where other callbacks may examine or hash after this one
        self._since = self._since or time.perf_counter()
        # Before the step: Lightning advances the schedule before on_train_batch_end
        if self._first and self._rates is None:
            rates = pl_module.learning_rates
            self._rates = {part: float(rates.get(part, 0.0)) for part in self._parts}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: MultimodalModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if not self._first:
            return
        # Lists of device scalars: reading them here would make the device wait once per micro-batch
        self._losses.append(pl_module.micro_loss)
        self._tokens += batch.num_tokens
        self._id_digests += sum(map(digest_of_id, batch.sample_ids))
        self._by_objective.append(torch.stack(list(pl_module.micro_losses.values())))
        if trainer.global_step == self._finished:
            return
        loss, tokens, stop, *sums = self._reduce(trainer)
        step = Step(
            number=pl_module.step,
            stage=pl_module.stage.name,
            loss=loss,
            tokens=int(tokens),
            seconds=time.perf_counter() - self._since,
            learning_rates=self._rates or {},
            stop=stop > 0,
            losses=dict(zip(pl_module.micro_losses, sums[LIMBS:], strict=True)),
            samples=digest_of_limbs(sums[:LIMBS]),
        )
        self._finished = trainer.global_step
        self._begin_step()
        for callback in trainer.callbacks:
            if isinstance(callback, StepObserver):
                callback.on_step_end(trainer, pl_module, step)
        self._since = time.perf_counter()

    def _begin_step(self) -> None:
        self._losses: list[Tensor] = []
        self._by_objective: list[Tensor] = []
        self._tokens = self._id_digests = 0
        self._rates: dict[str, float] | None = None

    def _reduce(self, trainer: L.Trainer) -> list[float]:
        """Over all micro-batches and ranks: loss, tokens, how many want to stop, limbs of the samples' digest, and the
        loss of each objective."""
        wide = torch.float32 if trainer.strategy.root_device.type == "mps" else torch.float64
        wishes = sum(c.wants_to_stop() for c in trainer.callbacks if isinstance(c, StepObserver))
        loss = torch.stack(self._losses).to(wide).sum(dim=0, keepdim=True)
        losses = torch.stack(self._by_objective).to(wide).sum(dim=0)
        sums = torch.cat([loss, loss.new_tensor([self._tokens, wishes, *limbs_of(self._id_digests)]), losses])
        return trainer.strategy.reduce(sums, reduce_op="sum").tolist()
