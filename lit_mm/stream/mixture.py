"""Mixtures: how often each source is drawn in an epoch, and in which order. Arithmetic on sizes, weights and seed."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lit_mm.documents.document import Document
from lit_mm.errors import UserError
from lit_mm.stream.order import stable_hash


@runtime_checkable
class Placed(Protocol):
    """Documents that lie in files."""

    def where(self, number: int) -> str:
        """File and line of a sample."""
        ...


def place_of(documents: Any, number: int) -> str:
    """File and line of a sample; "" of documents that lie in no file."""
    return documents.where(number) if isinstance(documents, Placed) else ""


class Joined:
    """Several sources as one: the samples of the first, then those of the second, and so on.

    Args:
        sources: each gives documents by number.
        names: of the sources, in logs and in the ledger, and what their documents then call their source; they differ.
        draws: samples of an epoch by source; every sample once when left out.
    """

    def __init__(self, sources: Sequence[Any], names: Sequence[str], draws: Sequence[int] | None = None) -> None:
        if len(set(names)) < len(names):
            raise UserError(f"the sources of a mixture need different names, got {list(names)}")
        self.sources, self.names = list(sources), list(names)
        self.sizes = [len(source) for source in sources]
        self.draws = list(draws) if draws is not None else self.sizes
        self.starts = [0]
        for size in self.sizes:
            self.starts.append(self.starts[-1] + size)

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, number: int) -> Document:
        source = self.source_of(number)
        return replace(self.sources[source][number - self.starts[source]], source=self.names[source])

    def where(self, number: int) -> str:
        """File and line of a sample; "" of a source without files."""
        source = self.source_of(number)
        return place_of(self.sources[source], number - self.starts[source])

    def source_of(self, number: int) -> int:
        """Which source a sample is of."""
        return bisect_right(self.starts, number) - 1


def draws_per_epoch(sizes: Sequence[int], weights: Sequence[float], names: Sequence[str]) -> list[int]:
    """Draws of each source in an epoch of as many samples as there are in all, in proportion to `weights`.

    Rounded by largest remainder, so they add up. A source may be drawn more than once over, or in part; the next epoch
    then goes on where this one ended. Example: sizes 900 and 100 with weights 1 and 1 draw 500 of each.

    Args:
        sizes: samples of each source.
        weights: positive; only their ratios count. `sqrt(size)` is InstructBLIP's choice.
    Raises:
        UserError: a weight is not positive, or so small that its source is never drawn.
    Source: arXiv:2305.06500, section 2.3 (square-root weights).
    """
    total, whole = sum(sizes), sum(weights)
    if not all(weight > 0 and math.isfinite(weight) for weight in weights):
        raise UserError(f"weights of a mixture are positive numbers, got {dict(zip(names, weights, strict=True))}")
    shares = [total * weight / whole for weight in weights]
    draws = [int(share) for share in shares]
    by_rest = sorted(range(len(shares)), key=lambda s: (draws[s] - shares[s], s))
    for source in by_rest[: total - sum(draws)]:
        draws[source] += 1
    if 0 in draws:
        name = names[draws.index(0)]
        raise UserError(f"source {name!r} has so small a weight that no epoch of {total} samples draws it; raise it")
    return draws


class Interleaved:
    """Epoch -> sample numbers of a `Joined`: each source in an order of its own, spread evenly over the epoch.

    Draw j of a source with q draws stands at (j + 1/2) / q of the epoch. After any k draws of an epoch of N, a source
    has then been drawn k * q / N times, give or take (S + 1) / 2 for S sources. Every source runs through permutations
    of itself without a break: no sample comes a second time before all have come once, over epochs too, so a source
    that is drawn in part shows all it has in the end. The order of a source depends on its name and not on the others.

    Args:
        joined: names, sizes and draws.
        seed: of the run and the stage.
    """

    def __init__(self, joined: Joined, seed: int) -> None:
        self.names, self.sizes, self.draws = joined.names, joined.sizes, joined.draws
        self.seed = seed
        self._permutation = lru_cache(maxsize=2 * len(self.sizes))(self._permute)

    def _permute(self, source: int, turn: int) -> np.ndarray:
        rng = np.random.default_rng(stable_hash(self.seed, self.names[source], turn))
        return rng.permutation(self.sizes[source])

    def _drawn(self, source: int, epoch: int) -> np.ndarray:
        """[q] the source's own numbers that the epoch draws, in order."""
        size, draws = self.sizes[source], self.draws[source]
        start, pieces = epoch * draws, []
        while start < (epoch + 1) * draws:
            turn, first = divmod(start, size)
            pieces.append(self._permutation(source, turn)[first : first + (epoch + 1) * draws - start])
            start += len(pieces[-1])
        return np.concatenate(pieces)

    def __call__(self, epoch: int) -> np.ndarray:
        offsets = np.cumsum([0, *self.sizes[:-1]])
        numbers = np.concatenate([self._drawn(s, epoch) + offsets[s] for s in range(len(self.sizes))])
        places = np.concatenate([(np.arange(draws) + 0.5) / draws for draws in self.draws])
        return numbers[np.argsort(places, kind="stable")]  # at one place, the source that is listed first
