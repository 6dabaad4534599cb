"""Order is arithmetic: which rows form step k is a pure function of (seed, epoch, lengths, k)."""

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

Row = tuple[int, ...]  # sample numbers that share a row


def stable_hash(*parts: object) -> int:
    """63-bit hash of the parts' representations; the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True)
class MicroBatch:
    """What one rank computes in one forward.

    Attributes:
        rows: its rows.
        step_tokens: supervised tokens of the whole optimizer step.
        lengths: planned lengths of the samples of every row; () if there is nothing to compare with.
        phase: number of changes of the inputs before this step.
    """

    rows: tuple[Row, ...]
    step_tokens: int
    lengths: tuple[tuple[Length, ...], ...] = ()
    phase: int = 0


class Window(NamedTuple):
    """Samples that are packed together: the rows they make, and those that were left out."""

    rows: list[Row]
    left_out: list[int]


@dataclass(frozen=True)
class Head:
    """Where a plan begins that continues another one.

    Attributes:
        window: number of its first window, counted through all epochs.
        samples: sample numbers of that window that are left, in their order; None: all of it.
        rows: rows of the stream before it.
    """

    window: int
    samples: tuple[int, ...] | None
    rows: int


START = Head(0, None, 0)


class Plan:
    """The endless stream of rows: epoch after epoch, each a fresh order, packed in windows.

    Each epoch orders its samples, cuts the order into windows, packs each window best-fit-decreasing and shuffles its
    rows. Windows are packed when they are reached, so a large set starts at once. Where row k lies depends on how many
    rows the windows before it made; `mark` says it in two numbers that a checkpoint may keep beside the position, so
    that a restart packs one window instead of all that came before.

    Args:
        samples: samples of an epoch.
        length: sample number -> `Length`, None for a sample that is left out. Must be a pure function.
        seed: of the run and the stage.
        row_tokens, row_views: the two budgets of a row; None for one sample a row (no packing).
        window: samples that are packed together.
        order: epoch -> [samples] sample numbers, a pure function; a permutation of all by the seed when left out.
        head: where the plan begins; rows before it are another plan's.
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
        self._first = head.window  # the window that `_starts` begins with
        self._starts = [head.rows]  # rows before each window from there on, over all epochs
        self._order = lru_cache(maxsize=2)(order or self._permutation)
        self._window = lru_cache(maxsize=8)(self._pack_window)

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng(stable_hash(self.seed, epoch)).permutation(self.samples)

    def samples_of(self, number: int) -> list[int]:
        """Sample numbers of window `number`, counted through all epochs, in their order."""
        if number == self.head.window and self.head.samples is not None:
            return list(self.head.samples)
        epoch, window = divmod(number, self._windows)
        return self._order(epoch)[window * self.window : (window + 1) * self.window].tolist()

    def _pack_window(self, number: int) -> Window:
        """Window `number`, counted through all epochs."""
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
        """Rows before window `number`."""
        while self._first + len(self._starts) <= number:
            last = self._first + len(self._starts) - 1
            self._starts.append(self._starts[-1] + len(self._window(last).rows))
        return self._starts[number - self._first]

    def _number_of(self, row: int) -> int:
        """The window that holds a row.

        Raises:
            UserError: a whole epoch makes no row.
        """
        if row < self._starts[0]:  # before the mark: from the beginning, then
            self._begin()
        empty = 0
        while self._starts[-1] <= row:
            before = self._starts[-1]
            self._start_of(self._first + len(self._starts))
            empty = empty + 1 if self._starts[-1] == before else 0
            if empty > 2 * self._windows:
                raise UserError(
                    "no sample of the data set can be trained on: all were left out. See the reasons in ledger.jsonl, "
                    "or set `on_bad_sample: fail` to stop at the first"
                )
        return self._first + bisect_right(self._starts, row) - 1

    def rows(self, start: int, stop: int) -> list[Row]:
        """Rows [start, stop) of the stream."""
        rows: list[Row] = []
        while len(rows) < stop - start:
            row = start + len(rows)
            number = self._number_of(row)
            first = row - self._start_of(number)
            rows += self._window(number).rows[first : first + stop - row]
        return rows

    def left_out(self, start: int, stop: int) -> list[int]:
        """The left out samples that rows [start, stop) account for: those of the windows that begin there.

        A window without rows belongs to the row before it, or to the next row if it is the first of its epoch. So
        any cut of the stream into steps accounts for every window once.
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
        """The first samples of the first epoch, left out or not."""
        return self._order(0)[:count].tolist()

    def rows_of(self, epochs: int) -> int:
        """Rows of the first `epochs` passes over the samples."""
        self._begin()
        return self._start_of(max(epochs * self._windows, self.head.window))

    def _begin(self) -> None:
        """Forget a mark: count rows from the head."""
        if self._first != self.head.window:
            self._first, self._starts = self.head.window, [self.head.rows]

    def phase_of(self, row: int) -> int:
        """Number of changes of the inputs before a row: none in a single plan."""
        return 0

    def length_at(self, row: int) -> Callable[[int], Length | None]:
        """The lengths of samples that hold for a row."""
        return self.length

    def head_at(self, row: int) -> Head:
        """Where another plan begins that takes over at a row, with the samples of this one that have had no turn.

        The rest of a window begins with the samples whose rows come later, in their order. What was left out of the
        window was accounted for with its first row and does not come back.
        """
        number, last = self._number_of(row), self._number_of(row - 1)
        start = self._start_of(number)
        if start < row:
            rest = Counter(i for rest_row in self._window(number).rows[row - start :] for i in rest_row)
            samples = []
            for i in reversed(self.samples_of(number)):  # of a sample that is drawn twice, the later draw is left
                if rest[i]:
                    rest[i] -= 1
                    samples.append(i)
            return Head(number, tuple(reversed(samples)), row)
        while number - 1 > last and (number - 1) // self._windows != last // self._windows:
            number -= 1  # windows without rows at the start of an epoch are accounted for with the next row
        return Head(number, None, row)

    def mark(self, row: int) -> tuple[int, int]:
        """The window that holds a row, and the rows before that window: what `go_to` needs. A pure function."""
        number = self._number_of(row)
        return number, self._start_of(number)

    def go_to(self, mark: tuple[int, int]) -> None:
        """Take up the stream at a mark; rows before it are then found from the beginning, as without one."""
        if not self._first <= mark[0] < self._first + len(self._starts):  # else it is known already
            self._first, self._starts = mark[0], [mark[1]]


class Stream(Protocol):
    """Rows in an order that is a pure function: a `Plan`, or several one after the other (`Phases`)."""

    def rows(self, start: int, stop: int) -> list[Row]: ...

    def left_out(self, start: int, stop: int) -> list[int]: ...

    def first(self, count: int) -> list[int]: ...

    def rows_of(self, epochs: int) -> int: ...

    def phase_of(self, row: int) -> int: ...

    def length_at(self, row: int) -> Callable[[int], Length | None]: ...

    def mark(self, row: int) -> Any: ...

    def go_to(self, mark: Any) -> None: ...


class StepSamples(NamedTuple):
    """The samples that an optimizer step accounts for: those in its rows, and those that planning left out."""

    in_rows: list[int]
    left_out: list[int]


class RowStream:
    """A sampler: the micro-batches of one rank from optimizer step `first_step` on, up to `steps`.

    Step t takes rows [t * global_batch, (t + 1) * global_batch) of the plan, shared out evenly (`share_out`) among
    ranks x accumulation micro-batches of `micro_batch` rows. Any ranks x accumulation over one global batch covers the
    same rows.

    Raises:
        UserError: the global batch does not split, or (while iterating) a step has nothing to learn.
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
        """Micro-batches of the whole stage, whatever the first step: Lightning counts the finished ones itself."""
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
                    f"{[i for row in rows for i in row][:8]}). Has the data answers? If few have, raise `global_batch`"
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
                )

    def samples(self, step: int) -> StepSamples:
        """What optimizer step `step` of the stage (from 0) accounts for, over all ranks and micro-batches."""
        start, stop = step * self.global_batch, (step + 1) * self.global_batch
        return StepSamples([i for row in self.plan.rows(start, stop) for i in row], self.plan.left_out(start, stop))
