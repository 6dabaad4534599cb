"""This dataset builds batches from micro-batches of sample numbers, in the worker processes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import chain

from torch import Tensor
from torch.utils.data import Dataset

from lit_mm.documents.document import Document
from lit_mm.errors import UserError
from lit_mm.samples.batch import PAIRS, TOKENS, Batch
from lit_mm.samples.collate import collate
from lit_mm.samples.fault import Fault
from lit_mm.samples.length import Length
from lit_mm.samples.processor import Sample
from lit_mm.stream.maker import SampleMaker, unlearnt
from lit_mm.stream.order import MicroBatch, stable_hash
from lit_mm.stream.screen import BadSample


class Rows(Dataset):
    """A dataset that builds the batch of a `MicroBatch`: it tokenises, decodes, tiles and collates.

    A sample whose pixels cannot be read is *lost* unless `on_bad_sample` is "fail". It keeps its positions, gets blank
    views of the same shapes, and has no label. Its tokens stay in the denominator of the loss, `Batch.units`, and add
    nothing to the sum, so the gradients of all other samples stay the same. A sample whose entry in the source became
    unreadable after planning is missing from its row, which is then shorter; its tokens stay in the denominator, too.

    Args:
        maker: builder of samples.
        on_bad_sample: policy for samples that cannot be read; "fail" raises the error.
        seed: seed of run and stage, for augmentations.
    """

    def __init__(self, maker: SampleMaker, on_bad_sample: BadSample = "fail", seed: int = 0) -> None:
        self.maker, self.on_bad_sample, self.seed = maker, on_bad_sample, seed

    def __getitem__(self, micro: MicroBatch) -> Batch:
        documents = self.maker.documents
        faults: list[Fault] = []
        planned = dict(zip(chain(*micro.rows), chain(*micro.lengths), strict=False))
        numbers, samples, views = [], [], []
        for number in chain(*micro.rows):
            draw = stable_hash(self.seed, micro.step, number)
            if (entry := self._make(number, planned.get(number), faults, draw)) is not None:
                numbers.append(number)
                samples.append(entry[0])
                views.append(entry[1])
        lost = {fault.number for fault in faults}
        counts = Counter(documents.source_of(number) for number in chain(*micro.rows) if number not in lost)
        batch = collate(
            samples,
            self.maker.processor,
            units={TOKENS: micro.step_tokens, PAIRS: micro.step_samples},
            views=views,
            sources=[documents.source_of(number) for number in numbers] if len(documents.names) > 1 else None,
        )
        return replace(
            batch,
            sample_ids=tuple(sample.document.id for sample in samples if not sample.lost),
            num_by_source=tuple(counts[source] for source in range(len(documents.names))),
            lost=tuple(faults),
        )

    def _make(
        self, number: int, planned: Length | None, faults: list[Fault], draw: int
    ) -> tuple[Sample, list[Tensor]] | None:
        """Build a sample and its views. A bad sample appends to `faults`; if it has no positions, the result is None.

        Raises:
            UserError: the length differs from the planned one, under any `on_bad_sample`, because rows could overflow;
                or the sample is bad and `on_bad_sample` is "fail".
        """
        document: Document | None = None
        sample: Sample | None = None
        try:
            document = self.maker.documents[number]
            sample, _ = self.maker.make(document)
            views = [] if self.maker.processor.token_grid is None else self.maker.processor.crops(sample, draw)
        except UserError as error:
            fault = self.maker.with_place(error, number, document)
            if self.on_bad_sample == "fail":
                raise fault from error
            faults.append(Fault.of(number, fault, document.id if document is not None else ""))
            return None if sample is None else unlearnt(sample)
        if planned is not None and sample.length != planned:
            raise UserError(
                f"sample {document.id!r} has {sample.length.tokens} tokens, {sample.length.views} views and "
                f"{sample.length.supervised} supervised tokens, but was planned with {planned.tokens}, "
                f"{planned.views} and {planned.supervised}. Has its image or the model changed? `data index "
                "--rebuild` computes a new index"
            )
        return sample, views
