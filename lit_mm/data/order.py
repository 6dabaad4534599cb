"""Order is arithmetic: which rows form step k is a pure function of (seed, epoch, lengths, k)."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lit_mm.data.packing import pack
from lit_mm.errors import UserError

Row = tuple[int, ...]  # sample numbers that share a row


def stable_hash(*parts: object) -> int:
    """63-bit hash of the parts' representations; the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True, slots=True)
class Length:
    """What a sample will cost, known before its pixels are read."""

    tokens: int
    views: int
    supervised: int


@dataclass(frozen=True)
class MicroBatch:
    """What one rank computes in one forward: its rows, and the supervised tokens of the whole optimizer step."""

    rows: tuple[Row, ...]
    step_tokens: int


class Plan:
    """The endless stream of rows: epoch after epoch, each a fresh permutation, packed in windows.

    Each epoch permutes the samples, cuts the permutation into windows, packs each window best-fit-decreasing and
    shuffles its rows. Windows are packed when they are reached, so a large set starts at once.

    Args:
        samples: number of samples.
        length: sample number -> `Length`. Must be a pure function.
        seed: of the run and the stage.
        row_tokens, row_views: the two budgets of a row; None for one sample a row (no packing).
        window: samples that are packed together.
    """

    def __init__(
        self,
        samples: int,
        length: Callable[[int], Length],
        *,
        seed: int,
        row_tokens: int | None,
        row_views: int | None = None,
        window: int = 1024,
    ) -> None:
        if samples < 1:
            raise UserError(
                "the data set is empty: there is no sample to train on. Check the data section of the config"
            )
        self.samples, self.length, self.seed = samples, length, seed
        self.row_tokens, self.row_views, self.window = row_tokens, row_views, window
        self._windows = -(-samples // window)
        self._starts = [0]  # rows before window w, over all epochs
        self._window = lru_cache(maxsize=2)(self._pack_window)

    def _pack_window(self, number: int) -> list[Row]:
        """Rows of window `number`, counted through all epochs."""
        epoch, window = divmod(number, self._windows)
        order = np.random.default_rng(stable_hash(self.seed, epoch)).permutation(self.samples)
        chosen = [int(i) for i in order[window * self.window : (window + 1) * self.window]]
        if self.row_tokens is None:
            return [(i,) for i in chosen]
        rows = pack(chosen, [self.length(i) for i in chosen], tokens=self.row_tokens, views=self.row_views)
        shuffle = np.random.default_rng(stable_hash(self.seed, epoch, window)).permutation(len(rows))
        return [rows[i] for i in shuffle]

    def rows(self, start: int, stop: int) -> list[Row]:
        """Rows [start, stop) of the stream."""
        chosen: list[Row] = []
        number = bisect_right(self._starts, start) - 1
        while len(chosen) < stop - start:
            rows = self._window(number)
            if number + 1 == len(self._starts):
                self._starts.append(self._starts[number] + len(rows))
            if self._starts[number + 1] > start:
                first = max(0, start - self._starts[number])
                chosen += rows[first : first + stop - start - len(chosen)]
            number += 1
        return chosen

    def rows_of(self, epochs: int) -> int:
        """Rows of the first `epochs` passes over the samples."""
        while len(self._starts) <= epochs * self._windows:
            self._starts.append(self._starts[-1] + len(self._window(len(self._starts) - 1)))
        return self._starts[epochs * self._windows]


class RowStream:
    """A sampler: the micro-batches of one rank from optimizer step `first_step` on, up to `steps`.

    Step t takes rows [t * global_batch, (t + 1) * global_batch) of the plan; micro-batch a of rank r is a slice of
    `micro_batch` rows. Any ranks x accumulation over one global batch covers the same rows.

    Raises:
        UserError: the global batch does not split, or (while iterating) a step has nothing to learn.
    """

    def __init__(
        self, plan: Plan, *, steps: int, global_batch: int, micro_batch: int, rank: int, world: int, first_step: int = 0
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
            rows = self.plan.rows(step * self.global_batch, (step + 1) * self.global_batch)
            step_tokens = sum(self.plan.length(i).supervised for row in rows for i in row)
            if not step_tokens:  # the loss would be 0 / 0
                raise UserError(
                    f"optimizer step {step} of the stage has no supervised token in its {len(rows)} rows (samples "
                    f"{[i for row in rows for i in row][:8]}). Has the data answers? If few have, raise `global_batch`"
                )
            for turn in range(self.accumulation):
                start = (turn * self.world + self.rank) * self.micro_batch
                yield MicroBatch(tuple(rows[start : start + self.micro_batch]), step_tokens)
