"""The protocol of objectives."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor


class Objective(Protocol):
    """Sums a loss over a micro-batch. `MultimodalModule` divides the sum by the number of units of the optimizer step.

    Attributes:
        unit: key of `Batch.units` whose number the loss is divided by, such as "tokens".
        parts: names of the parts that the objective reads; None for all parts.
    """

    unit: str
    parts: frozenset[str] | None

    def __call__(self, model: Any, batch: Any) -> Tensor:
        """Return the sum over the units of the batch, a scalar in fp32. It must not depend on how a step is split."""
        ...


@runtime_checkable
class Comparing(Protocol):
    """An objective that compares the samples of a forward, so its loss depends on how a step is split.

    Attributes:
        compares: True.
    """

    compares: bool

    def depends_on(self, model: Any, pairs: int, ranks: int) -> str:
        """Describe what the loss of a pair depends on.

        Args:
            model: network of the objective.
            pairs: number of pairs of a rank in a forward.
            ranks: number of ranks.
        """
        ...


def split(pairs: int, ranks: int) -> str:
    """Describe the batch of a step. Example: 75 pairs on 8 ranks -> "600 pairs = 75 x 8"."""
    return f"{pairs * ranks:,} pairs = {pairs:,} x {ranks:,}"


@runtime_checkable
class Timed(Protocol):
    """An objective that changes over a stage. `MultimodalModule` sets its attributes before every forward.

    Attributes:
        step: optimizer step of the stage, from 0.
        total_steps: optimizer steps of the stage.
    """

    step: int
    total_steps: int
