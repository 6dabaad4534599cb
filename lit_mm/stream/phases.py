"""A stage whose inputs change at a step: plans one after the other, over the same samples in the same order."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence

from torch.utils.data import Dataset

from lit_mm.samples.batch import Batch
from lit_mm.samples.length import Length
from lit_mm.stream.order import START, Head, MicroBatch, Plan, Row
from lit_mm.stream.rows import Rows

Mark = list[tuple[int, int]]  # of every plan up to the current one, see `Plan.mark`


class Phases:
    """The stream of a stage in phases. Lengths differ from phase to phase, the order of samples does not.

    Phase p takes over at its first row, with the samples of the window at hand that have had no turn yet. The rows
    before it are those of the plan without this change, so a change never moves what came before it.

    Args:
        starts: first row of each phase, rising from 0.
        make: (number of the phase, its head) -> its plan.
    """

    def __init__(self, starts: Sequence[int], make: Callable[[int, Head], Plan]) -> None:
        assert starts[0] == 0 and sorted(set(starts)) == list(starts), starts
        self.starts, self.make = list(starts), make
        self._plans = [make(0, START)]

    def plan(self, phase: int) -> Plan:
        """The plan of a phase. It follows from those before it."""
        while len(self._plans) <= phase:
            number = len(self._plans)
            self._plans.append(self.make(number, self._plans[-1].head_at(self.starts[number])))
        return self._plans[phase]

    def phase_of(self, row: int) -> int:
        """Number of changes of the inputs before a row."""
        return bisect_right(self.starts, row) - 1

    def length_at(self, row: int) -> Callable[[int], Length | None]:
        """See `Plan.length_at`."""
        return self.plan(self.phase_of(row)).length

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[Plan, int, int]]:
        """[start, stop) cut where phases begin, with the plan of each piece."""
        while start < stop:
            phase = self.phase_of(start)
            end = min([stop, *self.starts[phase + 1 : phase + 2]])
            yield self.plan(phase), start, end
            start = end

    def rows(self, start: int, stop: int) -> list[Row]:
        """See `Plan.rows`."""
        return [row for plan, first, end in self._pieces(start, stop) for row in plan.rows(first, end)]

    def left_out(self, start: int, stop: int) -> list[int]:
        """See `Plan.left_out`."""
        return [sample for plan, first, end in self._pieces(start, stop) for sample in plan.left_out(first, end)]

    def first(self, count: int) -> list[int]:
        """See `Plan.first`."""
        return self.plan(0).first(count)

    def rows_of(self, epochs: int) -> int:
        """See `Plan.rows_of`."""
        for phase, end in enumerate([*self.starts[1:], None]):
            rows = self.plan(phase).rows_of(epochs)
            if end is None or rows <= end:
                return rows
        raise AssertionError("the last phase has no end")

    def mark(self, row: int) -> Mark:
        """See `Plan.mark`."""
        phase = self.phase_of(row)
        ends = [start - 1 for start in self.starts[1 : phase + 1]]
        return [self.plan(number).mark(last) for number, last in enumerate([*ends, row])]

    def go_to(self, mark: Mark) -> None:
        """See `Plan.go_to`."""
        for phase, (number, rows) in enumerate(mark):
            self.plan(phase).go_to((number, rows))


class PhasedRows(Dataset):
    """Makes the batch of a `MicroBatch` with the samples of its phase.

    Args:
        phases: rows of every phase.
    """

    def __init__(self, phases: Sequence[Rows]) -> None:
        self.phases = list(phases)

    def __getitem__(self, micro: MicroBatch) -> Batch:
        return self.phases[micro.phase][micro]
