"""The parameters of a sweep: their values, and the points of a grid or of a random search. No torch is imported."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from lit_mm.errors import UserError

Point = dict[str, Any]  # address of a key -> value
MOST_POINTS = 100_000  # of a grid


@dataclass(frozen=True)
class Choice:
    """A parameter with listed values.

    Attributes:
        values: values in the order of the specification; a constant has a single value.
    """

    values: tuple[Any, ...]

    @property
    def examples(self) -> tuple[Any, ...]:
        """Values that together show every mistake that a value of this parameter can have."""
        return self.values

    @property
    def grid(self) -> tuple[Any, ...] | None:
        """All values."""
        return self.values

    @property
    def count(self) -> int | None:
        """Number of values in `grid`."""
        return len(self.values)

    def draw(self, random: Random) -> Any:
        """Draw a value uniformly."""
        return random.choice(self.values)


@dataclass(frozen=True)
class Range:
    """A parameter between two bounds, which both belong to the range.

    Attributes:
        low, high: bounds.
        whole: True for whole numbers.
        log: True if the logarithm of the value is uniform.
        step: distance between values, counted from `low`; None for every number of the range.
    """

    low: float
    high: float
    whole: bool = False
    log: bool = False
    step: float | None = None

    @property
    def examples(self) -> tuple[Any, ...]:
        """The two bounds."""
        return (self.low, self.high)

    @property
    def grid(self) -> tuple[Any, ...] | None:
        """All values from the lowest to the highest; None for a continuous range."""
        step = self.step or (1 if self.whole else None)
        if step is None:
            return None
        return tuple(self._rounded(self.low + number * step) for number in range(self._steps(step) + 1))

    @property
    def count(self) -> int | None:
        """Number of values in `grid`, which are not listed for it; None for a continuous range."""
        step = self.step or (1 if self.whole else None)
        return None if step is None else self._steps(step) + 1

    def draw(self, random: Random) -> Any:
        """Draw a value."""
        if self.log:
            return min(self.high, max(self.low, math.exp(random.uniform(math.log(self.low), math.log(self.high)))))
        step = self.step or (1 if self.whole else None)
        if step is None:
            return random.uniform(self.low, self.high)
        return self._rounded(self.low + random.randint(0, self._steps(step)) * step)

    def _steps(self, step: float) -> int:
        return math.floor((self.high - self.low) / step + 1e-9)

    def _rounded(self, value: float) -> float:
        """Remove the rounding of sums: 0.1 + 2 * 0.1 is 0.3."""
        return int(value) if self.whole else float(f"{value:.12g}")


@dataclass(frozen=True)
class ServerOnly:
    """A parameter that W&B's server draws, and Optuna has no distribution for.

    Attributes:
        feature: the key of the specification without an equivalent, such as "distribution: normal".
        examples: values to check.
    """

    feature: str
    examples: tuple[Any, ...]

    @property
    def grid(self) -> None:
        """None: the parameter has no list of values."""
        return None

    @property
    def count(self) -> None:
        """None: the parameter has no list of values."""
        return None

    def draw(self, random: Random) -> Any:
        """Draw one of the examples, because the server alone knows the distribution."""
        return random.choice(self.examples)


Parameter = Choice | Range | ServerOnly


def example_points(parameters: Mapping[str, Parameter]) -> Iterator[Point]:
    """Yield a first point, and then points that differ from it by another example of one parameter."""
    first = {address: parameter.examples[0] for address, parameter in parameters.items()}
    yield first
    for address, parameter in parameters.items():
        for value in parameter.examples[1:]:
            yield first | {address: value}


def grid_size(parameters: Mapping[str, Parameter]) -> int:
    """Return the number of points of a grid.

    Raises:
        UserError: a parameter is a continuous range, or there are more than `MOST_POINTS` points.
    """
    count = 1
    for address, parameter in parameters.items():
        if parameter.count is None:
            raise UserError(
                f"parameters.{address}: a grid needs `values`, whole numbers from `min` to `max`, or "
                "`distribution: q_uniform`. For this range use `method: random` or `bayes`"
            )
        count *= parameter.count
    if count > MOST_POINTS:
        raise UserError(
            f"parameters: a grid has at most {MOST_POINTS:,} points, got {count:,}. Name fewer `values`, or take "
            "`method: random` or `bayes`"
        )
    return count


def grid_points(parameters: Mapping[str, Parameter]) -> Iterator[Point]:
    """Yield the points of a grid; the last parameter changes fastest.

    Raises:
        UserError: see `grid_size`.
    """
    grid_size(parameters)
    for values in itertools.product(*(parameter.grid or () for parameter in parameters.values())):
        yield dict(zip(parameters, values, strict=True))


def random_point(parameters: Mapping[str, Parameter], seed: int, number: int) -> Point:
    """Draw the point of a trial, which depends on the seed and the number of the trial alone.

    Args:
        parameters: address -> parameter.
        seed: seed of the search.
        number: number of the trial, from 0.
    """
    from lit_mm.stream.order import stable_hash  # numpy, which --help need not wait for

    random = Random(stable_hash(seed, number))
    return {address: parameter.draw(random) for address, parameter in parameters.items()}


def written_point(point: Point) -> str:
    """Write a point for people, such as "stages.pretrain.train.connector.lr=0.01 model.init_args.rank=8"."""
    return " ".join(
        f"{address}={value if isinstance(value, str) else json.dumps(value)}" for address, value in point.items()
    )
