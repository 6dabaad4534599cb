"""Splits a source into held-out rows and the others by hashing row numbers, without a separate file."""

from __future__ import annotations

from typing import Any

import numpy as np

from lit_mm.documents.document import Document
from lit_mm.documents.sources import Source

MIX = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # of splitmix64


def row_hashes(count: int) -> np.ndarray:
    """Compute [count] uint64, a hash of every row number. It is the same on every machine.

    Source: splitmix64, the generator that seeds Java's SplittableRandom (Steele, Lea and Flood, OOPSLA 2014).
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64
        mixed = (np.arange(count, dtype=np.uint64) + np.uint64(1)) * np.uint64(MIX[0])
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(MIX[1])
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(MIX[2])
        return mixed ^ (mixed >> np.uint64(31))


class Split:
    """The held-out rows of a source, or all others.

    A row is held out if the hash of its number is below a share of the largest hash. So rows that are appended to a
    file do not move those before them, and neither seed nor machine matters. The row with the smallest hash is always
    held out, and the row with the largest hash never: a single row is trained on.

    Args:
        source: source that contains the rows of both parts.
        share: share of the rows that is held out, above 0 and below 1.
        is_held_out: True for the held-out rows, False for all others.
        limit: largest number of rows of this part, the first ones; None for all.
    """

    def __init__(self, source: Source, share: float, *, is_held_out: bool, limit: int | None = None) -> None:
        self.source, self.share, self.is_held_out, self.limit = source, share, is_held_out, limit
        self.name = source.name
        hashes = row_hashes(len(source))
        held_out = hashes < np.uint64(share * 2**64)
        held_out[hashes.argmin()] = True
        held_out[hashes.argmax()] = False
        self.numbers = np.flatnonzero(held_out == is_held_out)[:limit]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: int) -> Document:
        return self.source[self._row(number)]

    def where(self, number: int) -> str:
        """Return the file and line of a sample."""
        return self.source.where(self._row(number))

    @property
    def content(self) -> tuple[Any, ...]:
        """Return the values that determine the documents of this part; see `Source.content`."""
        return self.source.content, self.share, self.is_held_out, self.limit

    def _row(self, number: int) -> int:
        """Return the number of a sample in the source."""
        if not 0 <= number < len(self):
            raise IndexError(f"this part of {self.name} has {len(self)} samples, there is no number {number}")
        return int(self.numbers[number])
