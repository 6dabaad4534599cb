"""This module computes the order of training: the rows of step k are a pure function of (seed, epoch, lengths, k)."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from lit_mm.errors import UserError
from lit_mm.samples.length import Length
from lit_mm.stream.packing import pack, share_out

Row = tuple[int, ...]  # numbers of the samples packed into one row


def stable_hash(*parts: object) -> int:
    """Hash the `repr` of all parts to 63 bits. The result is the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True)
class MicroBatch:
    """The rows of one forward pass on one rank.

    Attributes:
        rows: rows of the micro-batch.
        step_tokens: supervised tokens in the whole optimizer step, over all ranks.
        lengths: planned lengths of the samples, row by row; () if they are unknown and not checked.
        phase: number of changes of the inputs before this step.
        step_samples: samples in the whole optimizer step, over all ranks.
        step: optimizer step of the stage, from 0.
    """

    rows: tuple[Row, ...]
    step_tokens: int
    lengths: tuple[tuple[Length, ...], ...] = ()
    phase: int = 0
    step_samples: int = 0
    step: int = 0


class Window(NamedTuple):
    """A window of samples, packed.

    Attributes:
        rows: rows that the samples were packed into.
        left_out: numbers of the samples that cannot be trained on.
    """

    rows: list[Row]
    left_out: list[int]


@dataclass(frozen=True)
class Head:
    """The starting point of a plan that continues another plan.

    Attributes:
        window: number of the first window, counted through all epochs.
        samples: samples of that window that are still to come, in order; None means all of them.
        rows: number of rows in the stream before this point.
    """

    window: int
    samples: tuple[int, ...] | None
    rows: int


START = Head(0, None, 0)


class Plan:
    """An endless stream of packed rows, with a new order in every epoch.

    An epoch orders the samples, cuts the order into windows, packs each window by best-fit-decreasing, and shuffles the
    rows of the window. Windows are packed when the stream reaches them, so training on a large data set starts at once.

    The window of row k depends on how many rows all windows before it have. `mark` stores this in two numbers, which a
    checkpoint keeps, so a restart packs one window instead of all earlier ones.

    Args:
        samples: number of samples in an epoch.
        length: sample number -> `Length`, or None if the sample is left out. It must be a pure function.
        seed: seed derived from run and stage.
        row_tokens: largest number of tokens in a row; None puts one sample in a row (no packing).
        row_views: largest number of views in a row; None for no limit.
        window: number of samples that are packed together.
        order: epoch -> [samples] sample numbers, a pure function; None is a random permutation by the seed.
        head: starting point of the plan. Rows before it belong to another plan.
    Raises:
        UserError: `samples` is 0.
    """

    def __init__(
        self,
        samples: int,
        length: Callable[[int], Length | None],
        *,
        seed: int,
        row_tokens: int | None,
        row_views: int | None = None,
        window: int = 1024,
        order: Callable[[int], np.ndarray] | None = None,
        head: Head = START,
    ) -> None:
        if samples < 1:
            raise UserError(
                "the data set is empty: there is no sample to train on. Check the data section of the config"
            )
        self.samples, self.length, self.seed = samples, length, seed
        self.row_tokens, self.row_views, self.window = row_tokens, row_views, window
        self._windows = -(-samples // window)
        self.head = head
        self._first = head.window  # number of the window of the first entry of `_starts`
        self._starts = [head.rows]  # rows before each window from `_first` on, over all epochs
        self._order = lru_cache(maxsize=2)(order or self._permutation)
        self._window = lru_cache(maxsize=8)(self._pack_window)

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng(stable_hash(self.seed, epoch)).permutation(self.samples)

    def samples_of(self, number: int) -> list[int]:
        """Sample numbers of window `number` (counted through all epochs), in order."""
        if number == self.head.window and self.head.samples is not None:
            return list(self.head.samples)
        epoch, window = divmod(number, self._windows)
        return self._order(epoch)[window * self.window : (window + 1) * self.window].tolist()

    def _pack_window(self, number: int) -> Window:
        """Pack window `number`, counted through all epochs."""
        epoch, window = divmod(number, self._windows)
        measured = [(i, self.length(i)) for i in self.samples_of(number)]
        left_out = [i for i, length in measured if length is None]
        fitting = [i for i, length in measured if length is not None]
        if self.row_tokens is None:
            return Window([(i,) for i in fitting], left_out)
        lengths = [length for _, length in measured if length is not None]
        rows = pack(fitting, lengths, tokens=self.row_tokens, views=self.row_views)
        shuffle = np.random.default_rng(stable_hash(self.seed, epoch, window)).permutation(len(rows))
        return Window([rows[i] for i in shuffle], left_out)

    def _start_of(self, number: int) -> int:
        """Return the number of rows before window `number`."""
        while self._first + len(self._starts) <= number:
            last = self._first + len(self._starts) - 1
            self._starts.append(self._starts[-1] + len(self._window(last).rows))
        return self._starts[number - self._first]

    def _number_of(self, row: int) -> int:
        """Return the number of the window that holds a row.

        Raises:
            UserError: a whole epoch has no row, because all samples are left out.
        """
        if row < self._starts[0]:  # the row lies before the mark, so count from the beginning
            self._begin()
        empty = 0
        while self._starts[-1] <= row:
            before = self._starts[-1]
            self._start_of(self._first + len(self._starts))
            empty = empty + 1 if self._starts[-1] == before else 0
            if empty > 2 * self._windows:
                raise UserError(
                    "no sample of the data set can be used for training: all were left out. See the reasons in "
                    "ledger.jsonl, or set `on_bad_sample: fail` to stop at the first bad sample"
                )
        return self._first + bisect_right(self._starts, row) - 1

    def rows(self, start: int, stop: int) -> list[Row]:
        """Return rows [start, stop) of the stream."""
        rows: list[Row] = []
        while len(rows) < stop - start:
            row = start + len(rows)
            number = self._number_of(row)
            first = row - self._start_of(number)
            rows += self._window(number).rows[first : first + stop - row]
        return rows

    def left_out(self, start: int, stop: int) -> list[int]:
        """Return the numbers of samples left out of the windows that begin in rows [start, stop).

        A window without rows counts for the row before it, or for the next row if no row of its epoch precedes it. So
        every window counts exactly once, however the stream is cut into steps.
        """
        samples: list[int] = []
        number = self._number_of(start - 1) + 1 if start > self.head.rows else self.head.window
        epoch = self._number_of(stop - 1) // self._windows
        while (first := self._start_of(number)) < stop or (first == stop and number // self._windows == epoch):
            window = self._window(number)
            follows = first > self.head.rows and self._number_of(first - 1) // self._windows == number // self._windows
            account = first - 1 if not window.rows and follows else first
            if start <= account < stop:
                samples += window.left_out
            number += 1
        return samples

    def first(self, count: int) -> list[int]:
        """Return the numbers of the first `count` samples of the first epoch, including those that are left out."""
        return self._order(0)[:count].tolist()

    def rows_of(self, epochs: int) -> int:
        """Return the number of rows in the first `epochs` epochs."""
        self._begin()
        return self._start_of(max(epochs * self._windows, self.head.window))

    def _begin(self) -> None:
        """Drop the mark and count rows from the head."""
        if self._first != self.head.window:
            self._first, self._starts = self.head.window, [self.head.rows]

    def phase_of(self, row: int) -> int:
        """Count the changes of the inputs before a row: always 0, because a single plan has no change."""
        return 0

    def length_at(self, row: int) -> Callable[[int], Length | None]:
        """Return the function sample number -> length that was used to plan a row."""
        return self.length

    def head_at(self, row: int) -> Head:
        """Return the starting point of another plan that takes over at a row.

        If the row lies inside a window, the other plan first gets the samples of that window whose rows are still to
        come, in order. Samples left out of the window were counted with its first row and are not repeated.
        """
        number, last = self._number_of(row), self._number_of(row - 1)
        start = self._start_of(number)
        if start < row:
            rest = Counter(i for rest_row in self._window(number).rows[row - start :] for i in rest_row)
            samples = []
            for i in reversed(self.samples_of(number)):  # if a sample is drawn twice, its later draw is the one to come
                if rest[i]:
                    rest[i] -= 1
                    samples.append(i)
            return Head(number, tuple(reversed(samples)), row)
        while number - 1 > last and (number - 1) // self._windows != last // self._windows:
            number -= 1  # windows without rows at the start of an epoch count for the next row
        return Head(number, None, row)

    def mark(self, row: int) -> tuple[int, int]:
        """Mark for `go_to`: (number of the window that holds the row, rows before that window). A pure function."""
        number = self._number_of(row)
        return number, self._start_of(number)

    def go_to(self, mark: tuple[int, int]) -> None:
        """Continue from a mark, so that windows before it need not be packed. Rows before it remain available."""
        if not self._first <= mark[0] < self._first + len(self._starts):  # otherwise the window has been counted
            self._first, self._starts = mark[0], [mark[1]]


class Stream(Protocol):
    """A stream of rows in a fixed order: a single `Plan`, or several plans in sequence (`Phases`)."""

    def rows(self, start: int, stop: int) -> list[Row]: ...

    def left_out(self, start: int, stop: int) -> list[int]: ...

    def first(self, count: int) -> list[int]: ...

    def rows_of(self, epochs: int) -> int: ...

    def phase_of(self, row: int) -> int: ...

    def length_at(self, row: int) -> Callable[[int], Length | None]: ...

    def mark(self, row: int) -> Any: ...

    def go_to(self, mark: Any) -> None: ...


class StepSamples(NamedTuple):
    """The samples of one optimizer step, over all ranks.

    Attributes:
        in_rows: numbers of the samples in the rows of the step.
        left_out: numbers of the samples that were left out of the windows that begin in the step.
    """

    in_rows: list[int]
    left_out: list[int]


class RowStream:
    """A sampler that yields the micro-batches of one rank.

    Step t takes rows [t * global_batch, (t + 1) * global_batch) of the plan and distributes them evenly (`share_out`)
    over ranks x accumulation micro-batches of `micro_batch` rows. So a step has the same rows on any number of ranks.

    Args:
        plan: the stream of rows.
        steps: number of optimizer steps of the stage.
        global_batch: rows per optimizer step over all ranks.
        micro_batch: rows per rank and forward.
        rank: number of this rank.
        world: number of ranks.
        first_step: optimizer step at which iteration begins, from 0.
    Raises:
        UserError: `global_batch` is no multiple of micro_batch x ranks, or (while iterating) a step has no supervised
            token.
    """

    def __init__(
        self,
        plan: Stream,
        *,
        steps: int,
        global_batch: int,
        micro_batch: int,
        rank: int,
        world: int,
        first_step: int = 0,
    ) -> None:
        if global_batch % (micro_batch * world):
            raise UserError(
                f"global_batch must be a multiple of micro_batch x ranks, got {global_batch} and {micro_batch} x "
                f"{world}. Change `data.init_args.micro_batch` or the number of devices."
            )
        self.plan, self.steps, self.first_step = plan, steps, first_step
        self.global_batch, self.micro_batch, self.rank, self.world = global_batch, micro_batch, rank, world

    @property
    def accumulation(self) -> int:
        return self.global_batch // (self.micro_batch * self.world)

    def __len__(self) -> int:
        """Count the micro-batches of the whole stage. `first_step` is not deducted, because Lightning does that."""
        return self.steps * self.accumulation

    def __iter__(self) -> Iterator[MicroBatch]:
        for step in range(self.first_step, self.steps):
            start = step * self.global_batch
            rows, length = self.plan.rows(start, start + self.global_batch), self.plan.length_at(start)
            lengths = [[length(i) for i in row] for row in rows]
            step_tokens = sum(length.supervised for row in lengths for length in row)
            if not step_tokens:  # the loss would be 0 / 0
                raise UserError(
                    f"optimizer step {step} of the stage has no supervised token in its {len(rows)} rows (samples "
                    f"{[i for row in rows for i in row][:8]}). Do the data have answers? If few samples have, raise "
                    "`global_batch`"
                )
            costs = [(sum(n.tokens for n in row), sum(n.views for n in row)) for row in lengths]
            shares = share_out(costs, self.world * self.accumulation)
            for turn in range(self.accumulation):
                places = shares[turn * self.world + self.rank]
                yield MicroBatch(
                    tuple(rows[place] for place in places),
                    step_tokens,
                    tuple(tuple(lengths[place]) for place in places),
                    self.plan.phase_of(start),
                    sum(map(len, rows)),
                    step,
                )

    def samples(self, step: int) -> StepSamples:
        """Return the samples of optimizer step `step` of the stage (from 0), over all ranks and micro-batches."""
        start, stop = step * self.global_batch, (step + 1) * self.global_batch
        return StepSamples([i for row in self.plan.rows(start, stop) for i in row], self.plan.left_out(start, stop))
