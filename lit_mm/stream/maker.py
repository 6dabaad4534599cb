"""The sample maker builds samples from sample numbers, within the limits of the model and of a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from lit_mm.documents.decode import PictureError
from lit_mm.documents.document import Document
from lit_mm.documents.sources.errors import SampleError
from lit_mm.errors import UserError
from lit_mm.samples.processor import Processor, Sample
from lit_mm.samples.target import split_answer
from lit_mm.samples.truncate import truncate
from lit_mm.stream.mixture import Joined

TooLong = Literal["refuse", "truncate"]


class SampleMaker:
    """A sample maker builds samples by number. Planning and the worker processes both use it.

    Args:
        documents: documents of all sources, by number.
        processor: processor of the stage.
        too_long: policy for samples longer than `max_length` of the processor or than a row: "truncate" cuts them (see
            `lit_mm.samples.truncate`), "refuse" raises an error.
        row_tokens: largest number of tokens in a row; None for no limit.
        row_views: largest number of views in a row; None for no limit.
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
        """Build the sample of a document without reading pixels. Returns (sample, True if it was truncated).

        Raises:
            SampleError: the sample is too long and `too_long` is "refuse", or it has no supervised token.
            UserError: the prompt cannot express the document, or an encoder-decoder cannot learn the sample.
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
        if self.processor.writes_target:
            split_answer(fitting)
        return fitting, cut

    def __call__(self, number: int) -> tuple[Sample, bool]:
        """Build the sample of a document by number, see `make`.

        Raises:
            SampleError: the sample is too long and `too_long` is "refuse", it has no supervised token, its source
                cannot read it, or the prompt cannot express it. The error names file and line.
        """
        document: Document | None = None
        try:
            document = self.documents[number]
            return self.make(document)
        except UserError as error:
            raise self.with_place(error, number, document) from error

    def with_place(self, error: UserError, number: int, document: Document | None = None) -> SampleError:
        """Return the error with the place and the id of its sample added.

        Args:
            number: number of the sample.
            document: the sample's document; None if its source refused it.
        """
        return with_place(error, lambda: self.documents.where(number), document)


def with_place(error: UserError, where: Callable[[], str], document: Document | None) -> SampleError:
    """Return the error with the place and the id of its sample added.

    Args:
        where: function that returns the file and line of the sample, "" if its source has no files. It is called only
            if the error has no place.
        document: the sample's document; None if its source refused it.
    """
    if isinstance(error, SampleError) and error.where:
        return error
    place, sample_id = where(), "" if document is None else document.id
    if isinstance(error, SampleError):
        return SampleError(
            error.reason, where=place, sample_id=error.sample_id or sample_id, kind=error.kind, remedy=error.remedy
        )
    refusal = "bad_entry" if document is None else "layout_refused"
    kind = "unreadable_image" if isinstance(error, PictureError) else refusal
    return SampleError(str(error), where=place, sample_id=sample_id, kind=kind)


def _too_long(sample: Sample, maker: SampleMaker) -> str:
    visual = sum(sample.tokens_per_view)
    if len(sample) > maker.processor.max_length:
        return (
            f"sample {sample.document.id!r} has {len(sample)} tokens ({visual} of them visual), but the limit of the "
            f"model is {maker.processor.max_length}. Shorten it, raise `max_length`, or set `too_long: truncate`"
        )
    views = "any number of" if maker.row_views is None else maker.row_views
    return (
        f"sample {sample.document.id!r} has {len(sample)} tokens and {len(sample.tokens_per_view)} views, but a row "
        f"holds {maker.row_tokens} tokens and {views} views. Raise `row_tokens` or `row_views`, or "
        "set `too_long: truncate`"
    )


def unlearnt(sample: Sample) -> tuple[Sample, list[Tensor]]:
    """Mark a sample as lost: it keeps its positions, has no label, and gets blank views. Returns (sample, views)."""
    first = [view for plan in sample.plans for view in plan.views]
    second = [view for plan in sample.plans for view in plan.second]
    blank = [torch.zeros(3, *view.size) for view in (*first, *second)]
    return replace(sample, lost=True), blank
