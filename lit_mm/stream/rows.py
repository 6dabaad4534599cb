"""Micro-batches of sample numbers -> batches, made in the workers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import chain

from torch import Tensor
from torch.utils.data import Dataset

from lit_mm.documents.document import Document
from lit_mm.errors import UserError
from lit_mm.samples.batch import TOKENS, Batch
from lit_mm.samples.collate import collate
from lit_mm.samples.fault import Fault
from lit_mm.samples.length import Length
from lit_mm.samples.processor import Sample
from lit_mm.stream.maker import SampleMaker, unlearnt
from lit_mm.stream.order import MicroBatch
from lit_mm.stream.screen import BadSample


class Rows(Dataset):
    """Makes the batch of a `MicroBatch`: tokenising, decoding, tiling and collating happen here, in the workers.

    A sample whose pixels cannot be read is *lost* unless `on_bad_sample` is fail: it keeps its positions and gets blank
    views of the same shapes, so nothing moves for the others, and it carries no label. The loss counts it as one that
    is learnt perfectly: its tokens stay in the planned denominator, `Batch.units`, its share of the sum is zero, and
    every other sample has the gradient it would have had beside a sound neighbour. A sample whose entry has become
    unreadable since it was planned leaves its row shorter, and counts in the same way.

    Args:
        maker: makes the samples.
        on_bad_sample: fail lets the error through.
    """

    def __init__(self, maker: SampleMaker, on_bad_sample: BadSample = "fail") -> None:
        self.maker, self.on_bad_sample = maker, on_bad_sample

    def __getitem__(self, micro: MicroBatch) -> Batch:
        documents = self.maker.documents
        faults: list[Fault] = []
        planned = dict(zip(chain(*micro.rows), chain(*micro.lengths), strict=False))
        numbers, samples, views = [], [], []
        for number in chain(*micro.rows):
            if (entry := self._make(number, planned.get(number), faults)) is not None:
                numbers.append(number)
                samples.append(entry[0])
                views.append(entry[1])
        lost = {fault.number for fault in faults}
        counts = Counter(documents.source_of(number) for number in chain(*micro.rows) if number not in lost)
        batch = collate(
            samples,
            self.maker.processor,
            units={TOKENS: micro.step_tokens},
            views=views,
            sources=[documents.source_of(number) for number in numbers] if len(documents.names) > 1 else None,
        )
        return replace(
            batch,
            sample_ids=tuple(sample.document.id for sample in samples if not sample.lost),
            num_by_source=tuple(counts[source] for source in range(len(documents.names))),
            lost=tuple(faults),
        )

    def _make(self, number: int, planned: Length | None, faults: list[Fault]) -> tuple[Sample, list[Tensor]] | None:
        """A sample and its views; None, and an entry in `faults`, where there is no sample at all any more.

        Raises:
            UserError: its length is not the planned one, whatever happens to bad samples: rows would overflow.
        """
        document: Document | None = None
        sample: Sample | None = None
        try:
            document = self.maker.documents[number]
            sample, _ = self.maker.make(document)
            views = [] if self.maker.processor.token_grid is None else self.maker.processor.views(sample)
        except UserError as error:
            fault = self.maker.located(error, number, document)
            if self.on_bad_sample == "fail":
                raise fault from error
            faults.append(Fault.of(number, fault, document.id if document is not None else ""))
            return None if sample is None else unlearnt(sample)
        if planned is not None and sample.length != planned:
            raise UserError(
                f"sample {document.id!r} takes {sample.length.tokens} tokens, {sample.length.views} views and "
                f"{sample.length.supervised} supervised tokens; it was planned with {planned.tokens}, {planned.views} "
                f"and {planned.supervised}. Has its image or the model changed? `data index --rebuild` makes the index "
                "anew"
            )
        return sample, views
