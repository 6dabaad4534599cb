"""This module computes mixtures: how often and in which order each source is drawn, from sizes, weights and seed."""

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
        """Return file and line of a sample."""
        ...


def place_of(documents: Any, number: int) -> str:
    """Return file and line of a sample; "" if the documents lie in no file."""
    return documents.where(number) if isinstance(documents, Placed) else ""


class Joined:
    """A concatenation of sources: sample numbers run through the first source, then the second, and so on.

    Args:
        sources: sources of documents, indexed by number.
        names: distinct names of the sources, for logs, the ledger and the field `source` of their documents.
        draws: number of samples that an epoch draws from each source; None draws every sample once.
    Raises:
        UserError: two sources have the same name.
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
        """Return file and line of a sample; "" if its source has no files."""
        source = self.source_of(number)
        return place_of(self.sources[source], number - self.starts[source])

    def source_of(self, number: int) -> int:
        """Index of the source that holds a sample."""
        return bisect_right(self.starts, number) - 1


def square_root_shares(sizes: Sequence[int], factors: Sequence[float]) -> list[float]:
    """Compute the share of each source among the draws, in proportion to its factor times the root of its size.

    Example: sizes 900 and 100 with factors 1 have the shares 0.75 and 0.25.

    Args:
        sizes: number of training samples in each source; samples count, not images.
        factors: factor of each source, 1 for the plain rule.
    Source: arXiv:2305.06500, section 2.4. It lowers A-OKVQA and raises OKVQA by factors that are not published.
    """
    products = [factor * math.sqrt(size) for size, factor in zip(sizes, factors, strict=True)]
    return [product / sum(products) for product in products]


def check_weights(weights: Sequence[float], names: Sequence[str]) -> None:
    """Refuse weights of a mixture that are no positive numbers.

    Args:
        weights: weight of each source.
        names: names of the sources, for the message.
    Raises:
        UserError: a weight is not a positive number.
    """
    if not all(weight > 0 and math.isfinite(weight) for weight in weights):
        raise UserError(
            f"weights of a mixture are positive numbers, got {dict(zip(names, weights, strict=True))}. To "
            "leave a source out, remove it"
        )


def draws_per_epoch(sizes: Sequence[int], weights: Sequence[float], names: Sequence[str]) -> list[int]:
    """Compute how many samples an epoch draws from each source, in proportion to `weights`.

    An epoch has as many draws as all sources have samples. Counts are rounded by largest remainder, so they add up. A
    source may be drawn in part or more than once; the next epoch continues where this one ends. Example: sizes 900 and
    100 with weights 1 and 1 draw 500 of each.

    Args:
        sizes: number of samples in each source.
        weights: positive weights; only their ratios count. InstructBLIP has `square_root_shares`.
        names: names of the sources, for error messages.
    Raises:
        UserError: a weight is not positive, or is so small that its source would never be drawn.
    Source: arXiv:2305.06500, section 2.4. Its loader draws one source for a whole batch, on each rank by itself; here
        every batch mixes the sources.
    """
    check_weights(weights, names)
    total, weight_sum = sum(sizes), sum(weights)
    shares = [total * weight / weight_sum for weight in weights]
    draws = [int(share) for share in shares]
    by_rest = sorted(range(len(shares)), key=lambda s: (draws[s] - shares[s], s))
    for source in by_rest[: total - sum(draws)]:
        draws[source] += 1
    if 0 in draws:
        name = names[draws.index(0)]
        raise UserError(
            f"source {name!r} has such a small weight that it is never drawn in an epoch of {total} samples. "
            "Raise the weight"
        )
    return draws


class Interleaved:
    """An order of samples that spreads every source evenly over the epoch. Calling it maps an epoch to sample numbers.

    Draw j of a source with q draws is placed at (j + 1/2) / q of the epoch. So after any k of the N draws of an epoch,
    a source has been drawn k * q / N times, to within (S + 1) / 2 for S sources.

    Each source goes through one random permutation of its samples after another, across epochs: no sample is drawn
    again before all others of the source have been drawn. The permutations depend on the name of the source, not on
    the other sources.

    Args:
        joined: the mixture, of which names, sizes and draws are used.
        seed: seed derived from run and stage.
    """

    def __init__(self, joined: Joined, seed: int) -> None:
        self.names, self.sizes, self.draws = joined.names, joined.sizes, joined.draws
        self.seed = seed
        self._permutation = lru_cache(maxsize=2 * len(self.sizes))(self._permute)

    def _permute(self, source: int, turn: int) -> np.ndarray:
        rng = np.random.default_rng(stable_hash(self.seed, self.names[source], turn))
        return rng.permutation(self.sizes[source])

    def _draw(self, source: int, epoch: int) -> np.ndarray:
        """[q] sample numbers inside the source that the epoch draws, in order."""
        size, draws = self.sizes[source], self.draws[source]
        start, pieces = epoch * draws, []
        while start < (epoch + 1) * draws:
            turn, first = divmod(start, size)
            pieces.append(self._permutation(source, turn)[first : first + (epoch + 1) * draws - start])
            start += len(pieces[-1])
        return np.concatenate(pieces)

    def __call__(self, epoch: int) -> np.ndarray:
        offsets = np.cumsum([0, *self.sizes[:-1]])
        numbers = np.concatenate([self._draw(s, epoch) + offsets[s] for s in range(len(self.sizes))])
        places = np.concatenate([(np.arange(draws) + 0.5) / draws for draws in self.draws])
        return numbers[np.argsort(places, kind="stable")]  # at equal places, the source listed first comes first
