"""What becomes of every sample: it is trained on whole, truncated, or left out with a reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lit_mm.batch import IGNORE
from lit_mm.data.decode import PictureError
from lit_mm.data.document import Document
from lit_mm.data.mixture import Joined
from lit_mm.data.order import Length
from lit_mm.data.sources.errors import SampleError
from lit_mm.data.truncate import truncate
from lit_mm.errors import UserError
from lit_mm.processor import Processor, Sample

BadSample = Literal["fail", "skip", "quarantine"]
TooLong = Literal["refuse", "truncate"]
FEW = 1000  # a share of bad samples is counted over at least so many, or over the whole data set where it is smaller
UNKNOWN, WHOLE, CUT, BAD = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a sample was not trained on.

    Attributes:
        number: of the sample, through all sources.
        sample_id: its own id; `where` for one that has none.
        where: file and line, "" where the source does not say.
        kind: one of `lit_mm.data.sources.KINDS`.
        reason: in words, with what to do about it.
    """

    number: int
    sample_id: str
    where: str
    kind: str
    reason: str

    @classmethod
    def of(cls, number: int, error: UserError, sample_id: str = "") -> Fault:
        """The fault that an error tells.

        Args:
            sample_id: where the error does not know it.
        """
        if isinstance(error, SampleError):
            return cls(number, error.sample_id or sample_id, error.where, error.kind, str(error))
        kind = "unreadable_image" if isinstance(error, PictureError) else "bad_entry"
        return cls(number, sample_id, "", kind, str(error))


class SampleMaker:
    """Sample number -> sample that fits the model and a row. Used to plan and, again, in the workers.

    Args:
        documents: the sources.
        processor: of the stage.
        too_long: what happens to a sample beyond the processor's `max_length` or a row's budgets: it is cut (see
            `truncate`), or refused.
        row_tokens, row_views: the budgets of a row; None without.
    """

    def __init__(
        self,
        documents: Joined,
        processor: Processor,
        *,
        too_long: TooLong = "refuse",
        row_tokens: int | None = None,
        row_views: int | None = None,
    ) -> None:
        self.documents, self.processor, self.too_long = documents, processor, too_long
        self.row_tokens, self.row_views = row_tokens, row_views

    def make(self, document: Document) -> tuple[Sample, bool]:
        """The sample, and whether it was cut. Reads no pixels.

        Raises:
            SampleError: it is too long and may not be cut, or nothing in it is learnt.
            UserError: the prompt cannot express the document.
        """
        sample = self.processor.lay_out(document)
        tokens = min(self.processor.max_length, self.row_tokens or self.processor.max_length)
        fitting = truncate(sample, tokens=tokens, views=self.row_views)
        cut = len(fitting) < len(sample)
        if cut and self.too_long == "refuse":
            raise SampleError(_too_long(sample, self), sample_id=document.id, kind="too_long")
        if not fitting.length.supervised:
            raise SampleError(
                f"sample {document.id!r}: nothing of its {len(sample)} tokens is learnt"
                + (f" before the cut at {len(fitting)}" if cut else ""),
                sample_id=document.id,
                kind="no_supervision",
                remedy="Has it an answer? `on_bad_sample: skip` or `quarantine` leaves such samples out",
            )
        return fitting, cut

    def __call__(self, number: int) -> tuple[Sample, bool]:
        """`make` of a document by its number.

        Raises:
            UserError: as `make`; or the source cannot give it.
        """
        return self.make(self.documents[number])


def _too_long(sample: Sample, maker: SampleMaker) -> str:
    shown = sum(sample.tokens_per_view)
    if len(sample) > maker.processor.max_length:
        return (
            f"sample {sample.document.id!r} has {len(sample)} tokens ({shown} of them visual), the model takes "
            f"{maker.processor.max_length}. Shorten it, raise `max_length`, or set `too_long: truncate`"
        )
    views = "any number of" if maker.row_views is None else maker.row_views
    return (
        f"sample {sample.document.id!r} has {len(sample)} tokens and {len(sample.tokens_per_view)} views, a row holds "
        f"{maker.row_tokens} and {views} views. Raise `row_tokens` or `row_views`, or set `too_long: truncate`"
    )


class Screen:
    """Sample number -> `Length`, or None for a sample that is left out. Each is looked at once, when it is planned.

    Planning reads no pixels. What it leaves out never was in the stream, on any rank and in any epoch, so the rest of
    the stream is a pure function of data and config. A sample whose pixels turn out to be damaged in a worker is lost
    after planning: it stays in its row without labels, see `datamodules.stream.Rows`.

    Args:
        maker: makes the samples.
        on_bad_sample: fail raises; skip and quarantine leave the sample out (quarantine lists it in the ledger).
        max_bad: share of bad samples above which the run stops, those without supervision apart.
        max_unsupervised: the same for samples with nothing to learn.
        kept: by source, what the index of lengths says (`lit_mm.data.lengths.load`); then these samples need no look.
    """

    def __init__(
        self,
        maker: SampleMaker,
        *,
        on_bad_sample: BadSample = "fail",
        max_bad: float,
        max_unsupervised: float,
        kept: Sequence[np.ndarray | None] = (),
    ) -> None:
        self.kept = kept
        self.maker, self.on_bad_sample = maker, on_bad_sample
        self.max_bad, self.max_unsupervised = max_bad, max_unsupervised
        count = len(maker.documents)
        self.few = min(FEW, count)
        self.known = 0  # samples that were looked at
        self.progress: Callable[[int], None] | None = None  # told how many these are
        self.faults: dict[int, Fault] = {}
        self._unsupervised = 0
        # Twelve bytes a sample: a million lengths as objects would take ten times as much
        self._lengths = np.zeros((count, 3), dtype=np.int32)
        self._state = np.zeros(count, dtype=np.int8)

    def __call__(self, number: int) -> Length | None:
        if self._state[number] == UNKNOWN:
            self._look(number)
            if self.progress is not None:
                self.progress(self.known)
        return None if self._state[number] == BAD else Length(*self._lengths[number].tolist())

    def was_cut(self, number: int) -> bool:
        return bool(self._state[number] == CUT)

    def _look(self, number: int) -> None:
        if self._is_kept(number):
            return
        document: Document | None = None
        try:
            document = self.maker.documents[number]
            sample, cut = self.maker.make(document)
        except UserError as error:
            if self.on_bad_sample == "fail":
                raise
            self.known += 1
            self._state[number] = BAD
            self._leave_out(Fault.of(number, error, document.id if document is not None else ""))
            return
        self.known += 1
        self._lengths[number] = sample.length.tokens, sample.length.views, sample.length.supervised
        self._state[number] = CUT if cut else WHOLE

    def _is_kept(self, number: int) -> bool:
        """Take a sample's length from the index, if it is there."""
        documents = self.maker.documents
        source = documents.source_of(number)
        table = self.kept[source] if self.kept else None
        if table is None:
            return False
        *length, state = table[number - documents.starts[source]].tolist()
        if state == UNKNOWN:
            return False
        self.known += 1
        self._lengths[number], self._state[number] = length, state
        return True

    def _leave_out(self, fault: Fault) -> None:
        self.faults[fault.number] = fault
        self._unsupervised += fault.kind == "no_supervision"
        bad = len(self.faults) - self._unsupervised
        self.refuse_more_than(self.max_bad, "max_bad", bad, self.known, [fault])
        if self._unsupervised > self.max_unsupervised * max(self.known, self.few):
            raise UserError(
                f"{self._unsupervised} of the first {self.known} samples have nothing to learn, more than "
                f"`max_unsupervised: {self.max_unsupervised}` allows. The last: {fault.reason}"
            )

    def refuse_more_than(self, share: float, key: str, bad: int, seen: int, last: Sequence[Fault]) -> None:
        """The rate limit.

        Raises:
            UserError: `bad` of `seen` samples is more than `share`.
        """
        if bad > share * max(seen, self.few):
            raise UserError(
                f"{bad} of the first {seen} samples are bad, more than `{key}: {share}` allows. The last: "
                f"{last[-1].reason}"
            )


def unlearnt(sample: Sample) -> tuple[Sample, list[Tensor]]:
    """A sample whose pixels are lost, with its positions kept and no label, and blank views in their shapes."""
    blank = [torch.zeros(3, *view.size) for plan in sample.plans for view in plan.views]
    return replace(sample, labels=np.full_like(sample.labels, IGNORE)), blank
