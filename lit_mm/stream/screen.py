"""The screen decides whether a sample is trained on whole, truncated, or left out with a reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from lit_mm.documents.document import Document
from lit_mm.errors import UserError
from lit_mm.samples.fault import Fault
from lit_mm.samples.length import Length
from lit_mm.stream.maker import SampleMaker

BadSample = Literal["fail", "skip", "quarantine"]
FEW = 1000  # least number of samples over which a share of bad samples is computed; a smaller data set counts whole
UNKNOWN, WHOLE, CUT, BAD = 0, 1, 2, 3


class Screen:
    """Maps the number of a sample to its `Length`, or to None if the sample is left out. Lengths are cached.

    Planning reads no pixels. A sample that is left out appears on no rank and in no epoch, so the stream is a pure
    function of data and config. A sample whose pixels prove damaged in a worker is lost after planning: it stays in its
    row without labels, see `lit_mm.stream.rows.Rows`.

    Args:
        maker: object that makes the samples.
        on_bad_sample: "fail" raises an error; "skip" and "quarantine" leave the sample out, and "quarantine" also lists
            it in the ledger.
        max_bad: share of bad samples above which the run stops; samples without supervision do not count here.
        max_unsupervised: share of samples without supervision above which the run stops.
        tables: index of lengths by source (`lit_mm.stream.lengths.load`), None for a source without an index. Samples
            in an index are not laid out again.
    """

    def __init__(
        self,
        maker: SampleMaker,
        *,
        on_bad_sample: BadSample = "fail",
        max_bad: float,
        max_unsupervised: float,
        tables: Sequence[np.ndarray | None] = (),
    ) -> None:
        self.tables = tables
        self.maker, self.on_bad_sample = maker, on_bad_sample
        self.max_bad, self.max_unsupervised = max_bad, max_unsupervised
        count = len(maker.documents)
        self.few = min(FEW, count)
        self.examined = 0  # number of samples whose length is known
        self.progress: Callable[[int], None] | None = None  # called with `examined`
        self.faults: dict[int, Fault] = {}
        self._unsupervised = 0
        # Arrays take twelve bytes a sample; a million lengths as objects would take ten times as much
        self._lengths = np.zeros((count, 3), dtype=np.int32)
        self._state = np.zeros(count, dtype=np.int8)

    def __call__(self, number: int) -> Length | None:
        if self._state[number] == UNKNOWN:
            self._look(number)
            if self.progress is not None:
                self.progress(self.examined)
        return None if self._state[number] == BAD else Length(*self._lengths[number].tolist())

    def was_cut(self, number: int) -> bool:
        return bool(self._state[number] == CUT)

    def _look(self, number: int) -> None:
        if self._take_from_index(number):
            return
        document: Document | None = None
        try:
            document = self.maker.documents[number]
            sample, cut = self.maker.make(document)
        except UserError as error:
            fault = self.maker.with_place(error, number, document)
            if self.on_bad_sample == "fail":
                raise fault from error
            self.examined += 1
            self._state[number] = BAD
            self._leave_out(Fault.of(number, fault, document.id if document is not None else ""))
            return
        self.examined += 1
        self._lengths[number] = sample.length.tokens, sample.length.views, sample.length.supervised
        self._state[number] = CUT if cut else WHOLE

    def _take_from_index(self, number: int) -> bool:
        """Copy a sample's length from the index; return False if the index lacks it."""
        documents = self.maker.documents
        source = documents.source_of(number)
        table = self.tables[source] if self.tables else None
        if table is None:
            return False
        *length, state = table[number - documents.starts[source]].tolist()
        if state == UNKNOWN:
            return False
        self.examined += 1
        self._lengths[number], self._state[number] = length, state
        return True

    def _leave_out(self, fault: Fault) -> None:
        self.faults[fault.number] = fault
        self._unsupervised += fault.kind == "no_supervision"
        bad = len(self.faults) - self._unsupervised
        self.refuse_more_than(self.max_bad, "max_bad", bad, self.examined, [fault])
        if self._unsupervised > self.max_unsupervised * max(self.examined, self.few):
            raise UserError(
                f"{self._unsupervised} of the first {self.examined} samples have nothing to learn, more than "
                f"`max_unsupervised: {self.max_unsupervised}` allows. The last: {fault.reason}"
            )

    def refuse_more_than(self, share: float, key: str, bad: int, total: int, last: Sequence[Fault]) -> None:
        """Stop the run if the share of bad samples is above a limit.

        Args:
            share: limit, a fraction.
            key: config key of the limit, for the message.
            bad: number of bad samples.
            total: number of samples so far.
            last: latest faults; the last one is reported.
        Raises:
            UserError: `bad` of `total` samples is more than `share`.
        """
        if bad > share * max(total, self.few):
            raise UserError(
                f"{bad} of the first {total} samples are bad, more than `{key}: {share}` allows. The last: "
                f"{last[-1].reason}"
            )
