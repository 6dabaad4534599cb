"""Schedules give the learning rate over the steps of a stage, as a share of each part's peak rate."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from lit_mm.errors import UserError


class Schedule(ABC):
    """A learning rate over the optimizer steps of a stage. Subclasses are frozen dataclasses."""

    @abstractmethod
    def factor(self, step: int, total: int) -> float:
        """Return the share of the peak learning rate at optimizer step `step` (from 0) of `total`."""


@dataclass(frozen=True)
class Rising(Schedule):
    """A schedule that begins with a linear rise.

    Attributes:
        warmup: length of the linear rise to the peak: a share of the stage if below 1 (0.03 = 3 %), else optimizer
            steps (2000).
        start: share of the peak rate at which the rise starts.
        floor: share of the peak rate at which a falling rate ends.
    Raises:
        UserError: the warm-up is negative, or a share is not in [0, 1).
    """

    warmup: float | int = 0.01
    start: float = 0.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < math.inf or (self.warmup > 1 and self.warmup != int(self.warmup)):
            raise UserError(
                f"{type(self).__name__}: warmup is a share of the stage below 1, or a whole number of steps, got "
                f"{self.warmup}"
            )
        for name, share in (("start", self.start), ("floor", self.floor)):
            if not 0 <= share < 1:
                raise UserError(
                    f"{type(self).__name__}: {name} is a share of the peak learning rate in [0, 1), got {share}"
                )

    def warmup_steps(self, total: int) -> int:
        """Return the number of optimizer steps of the rise in a stage of `total` steps.

        Raises:
            UserError: the rise has more steps than the stage.
        """
        if self.warmup > total:
            raise UserError(
                f"{type(self).__name__}: the warm-up has {self.warmup:g} steps, but the stage has {total}. "
                "Shorten it, or use a share below 1"
            )
        return math.ceil(round(self.warmup * total, 6)) if self.warmup < 1 else int(self.warmup)  # 0.07 * 100 > 7


@dataclass(frozen=True)
class AfterRise(Rising):
    """A rise that reaches the peak at its last step, followed by `after`, whose progress is 1 behind the last step."""

    def factor(self, step: int, total: int) -> float:
        rise = self.warmup_steps(total)
        if step < rise:
            return self.start + (1 - self.start) * (step + 1) / rise
        return self.floor + (1 - self.floor) * self.after((step - rise) / max(1, total - rise))

    @abstractmethod
    def after(self, progress: float) -> float:
        """Return the share between floor (0) and peak (1) at a progress from 0 to 1 behind the rise."""


@dataclass(frozen=True)
class Cosine(AfterRise):
    """Half a cosine from the peak to the floor, step by step."""

    def after(self, progress: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Linear(AfterRise):
    """A straight line from the peak to the floor."""

    def after(self, progress: float) -> float:
        return 1 - progress


@dataclass(frozen=True)
class Constant(AfterRise):
    """The peak rate until the end.

    Raises:
        UserError: a floor is set, to which this rate never falls.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.floor:
            raise UserError(
                f"Constant: `floor` is not used, because the rate is constant, got {self.floor}. Leave `floor` out"
            )

    def after(self, progress: float) -> float:
        return 1.0


@dataclass(frozen=True)
class ByEpoch(Rising):
    """A rate that changes at the start of an epoch only; the rise lies in the first epoch and starts at `start`.

    Attributes:
        epochs: number of equal epochs that the stage is divided into.
    Raises:
        UserError: there is no epoch.
    Source: LAVIS 506965b, lavis/common/optims.py.
    """

    epochs: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs < 1:
            raise UserError(f"{type(self).__name__}: epochs is at least 1, got {self.epochs}")

    def factor(self, step: int, total: int) -> float:
        epoch = min(step * self.epochs // total, self.epochs - 1)
        if epoch == 0:
            rise = self.warmup_steps(total)
            return min(1.0, self.start + (1 - self.start) * step / rise) if rise else 1.0
        return self.at_epoch(epoch)

    @abstractmethod
    def at_epoch(self, epoch: int) -> float:
        """Return the share of the peak rate in an epoch, counted from 0; it is called from epoch 1 on."""


@dataclass(frozen=True)
class EpochCosine(ByEpoch):
    """A cosine over epochs. Source: LinearWarmupCosineLRScheduler of LAVIS (BLIP, BLIP-2, InstructBLIP)."""

    def at_epoch(self, epoch: int) -> float:
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))


@dataclass(frozen=True)
class EpochDecay(ByEpoch):
    """A rate that is multiplied by `decay` at every epoch. Source: LinearWarmupStepLRScheduler of LAVIS (BLIP).

    Attributes:
        decay: factor between the rates of two epochs, in (0, 1].
    Raises:
        UserError: the decay is out of its range.
    """

    decay: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.decay <= 1:
            raise UserError(f"EpochDecay: decay is in (0, 1], got {self.decay}")

    def at_epoch(self, epoch: int) -> float:
        return max(self.floor, self.decay**epoch)


@dataclass(frozen=True)
class GlobalCosine(Rising):
    """A cosine over all steps of the stage, the rise included. At the end of the rise the rate jumps down slightly.

    Source: LinearWarmupCosineLRScheduler of MiniGPT-4 d94738a, minigpt4/common/optims.py.
    """

    def factor(self, step: int, total: int) -> float:
        rise = self.warmup_steps(total)
        if step < rise:
            return min(1.0, self.start + (1 - self.start) * step / rise)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * step / total))
