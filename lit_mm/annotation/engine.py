"""The base of all engines, and the draws and clocks of their experts."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from lit_mm.annotation.description import Account, Identity, Row
from lit_mm.annotation.experts import Expert, Models
from lit_mm.stream.order import stable_hash


class Engine(ABC):
    """Lets experts describe images and decides which texts go into the new data set.

    Attributes:
        seconds: seconds spent per expert since the process started.
    """

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    @property
    @abstractmethod
    def subsets(self) -> tuple[str, ...]:
        """Names of the data sets that the engine writes."""

    @abstractmethod
    def experts(self) -> Mapping[str, Expert]:
        """Return the experts by their names in the output."""

    @abstractmethod
    def annotate(self, rows: Sequence[Row], seed: int) -> list[Account]:
        """Annotate rows. Random draws depend on the seed, the row and the expert, not on the other rows.

        Raises:
            UserError: an expert refuses one of the rows.
            ExpertError: an expert cannot work.
        """

    def load(self, models: Models) -> None:
        """Load every expert; see `Expert.load`."""
        for expert in self.experts().values():
            expert.load(models)

    def identities(self) -> dict[str, Identity]:
        """Return the facts of every expert by name."""
        return {name: expert.identity() for name, expert in self.experts().items()}

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Add the seconds of a `with` block to those of an expert."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] += time.monotonic() - start


def draw_seed(seed: int, row: Row, expert: str, number: int = 0) -> int:
    """Return the seed of the random draws of an expert for a row.

    Args:
        seed: seed of the run.
        row: row of a source.
        expert: name of the expert.
        number: number of the text among those that the expert writes about the row.
    """
    return stable_hash(seed, row.source, row.position, expert, number)
