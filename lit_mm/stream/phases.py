"""The stream of a stage with changing inputs: a sequence of plans over the same samples in the same order."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence

from torch.utils.data import Dataset

from lit_mm.samples.batch import Batch
from lit_mm.samples.length import Length
from lit_mm.stream.order import START, Head, MicroBatch, Plan, Row
from lit_mm.stream.rows import Rows

Mark = list[tuple[int, int]]  # marks of all plans up to the current one, see `Plan.mark`


class Phases:
    """A stream in phases. Lengths of samples differ between phases; the order of samples does not.

    A phase begins at its first row, with the remaining samples of the current window. Rows
    before a phase do not depend on it.

    Args:
        starts: first row of each phase, ascending from 0.
        make: function (number of the phase, head) -> plan of the phase.
    """

    def __init__(self, starts: Sequence[int], make: Callable[[int, Head], Plan]) -> None:
        assert starts[0] == 0 and sorted(set(starts)) == list(starts), starts
        self.starts, self.make = list(starts), make
        self._plans = [make(0, START)]

    def plan(self, phase: int) -> Plan:
        """Return the plan of a phase. It is built from the plans of all earlier phases."""
        while len(self._plans) <= phase:
            number = len(self._plans)
            self._plans.append(self.make(number, self._plans[-1].head_at(self.starts[number])))
        return self._plans[phase]

    def phase_of(self, row: int) -> int:
        """Return the number of the phase of a row, counted from 0."""
        return bisect_right(self.starts, row) - 1

    def length_at(self, row: int) -> Callable[[int], Length | None]:
        """Return the function sample number -> length that the plan of a row uses."""
        return self.plan(self.phase_of(row)).length

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[Plan, int, int]]:
        """Cut [start, stop) where phases begin; yield (plan, start, stop) of each piece."""
        while start < stop:
            phase = self.phase_of(start)
            end = min([stop, *self.starts[phase + 1 : phase + 2]])
            yield self.plan(phase), start, end
            start = end

    def rows(self, start: int, stop: int) -> list[Row]:
        """Return rows [start, stop) of the stream."""
        return [row for plan, first, end in self._pieces(start, stop) for row in plan.rows(first, end)]

    def left_out(self, start: int, stop: int) -> list[int]:
        """Return the numbers of the samples left out before rows [start, stop), see `Plan.left_out`."""
        return [sample for plan, first, end in self._pieces(start, stop) for sample in plan.left_out(first, end)]

    def first(self, count: int) -> list[int]:
        """Return the numbers of the first `count` samples of the first epoch, including those that are left out."""
        return self.plan(0).first(count)

    def rows_of(self, epochs: int) -> int:
        """Return the number of rows in the first `epochs` epochs."""
        for phase, end in enumerate([*self.starts[1:], None]):
            rows = self.plan(phase).rows_of(epochs)
            if end is None or rows <= end:
                return rows
        raise AssertionError("the last phase has no end")

    def mark(self, row: int) -> Mark:
        """Return the mark for `go_to`: the marks of all plans up to the plan of the row; see `Plan.mark`."""
        phase = self.phase_of(row)
        ends = [start - 1 for start in self.starts[1 : phase + 1]]
        return [self.plan(number).mark(last) for number, last in enumerate([*ends, row])]

    def go_to(self, mark: Mark) -> None:
        """Continue from a mark, see `Plan.go_to`."""
        for phase, (number, rows) in enumerate(mark):
            self.plan(phase).go_to((number, rows))


class PhasedRows(Dataset):
    """A dataset that builds the batch of a `MicroBatch` with the inputs of its phase.

    Args:
        phases: one dataset per phase, in order.
    """

    def __init__(self, phases: Sequence[Rows]) -> None:
        self.phases = list(phases)

    def __getitem__(self, micro: MicroBatch) -> Batch:
        return self.phases[micro.phase][micro]
