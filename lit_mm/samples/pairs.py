"""Pairs of a source and a target, for encoder-decoders. The source is a `Batch`, so it may hold images too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lit_mm.errors import UserError
from lit_mm.samples.batch import IGNORE, Batch
from lit_mm.samples.collate import collate
from lit_mm.samples.processor import Processor, Sample

if TYPE_CHECKING:
    from lit_mm.samples.fault import Fault


@dataclass(frozen=True)
class PairBatch:
    """Packed rows of pairs. B rows, S source positions, L target positions; row and segment join the two.

    Attributes:
        source: what is encoded; [B, S] ids and segments. It has no labels.
        target_ids: [B, L] ids to predict, all of them learnt; the padding id elsewhere.
        target_segments: [B, L] which sample of the row, from 1; 0 is padding.
        step_tokens: target tokens of the whole optimizer step, over all ranks and micro-batches.
    """

    source: Batch
    target_ids: Tensor
    target_segments: Tensor
    step_tokens: int = 0

    @property
    def segment_ids(self) -> Tensor:
        """[B, S + L] segments of source and target: positive where there is a token."""
        return torch.cat([self.source.segment_ids, self.target_segments], dim=1)

    @property
    def sample_ids(self) -> tuple[str, ...]:
        return self.source.sample_ids

    @property
    def held(self) -> tuple[int, ...]:
        """As `Batch.held`: pairs come from one source."""
        return (len(self.sample_ids),)

    @property
    def lost(self) -> tuple[Fault, ...]:
        """As `Batch.lost`: text has no pixels that could be lost."""
        return ()

    @property
    def num_tokens(self) -> int:
        """Useful tokens of source and target."""
        return self.source.num_tokens + self.num_supervised

    @property
    def num_supervised(self) -> int:
        return int((self.target_segments > 0).sum())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PairBatch:
        return replace(
            self,
            source=self.source.to(device, non_blocking),
            target_ids=self.target_ids.to(device, non_blocking=non_blocking),
            target_segments=self.target_segments.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> PairBatch:
        return replace(
            self,
            source=self.source.pin_memory(),
            target_ids=self.target_ids.pin_memory(),
            target_segments=self.target_segments.pin_memory(),
        )


def split_pair(sample: Sample) -> tuple[Sample, np.ndarray]:
    """A sample -> its source, without labels, and the ids of its target: all that is learnt, which stands last.

    Raises:
        UserError: nothing is learnt, nothing precedes it, or something that is not learnt follows it.
    """
    learnt = sample.labels != IGNORE
    length = int(learnt.sum())
    start = len(sample) - length
    if not 0 < start < len(sample) or not learnt[start:].all():
        raise UserError(
            f"sample {sample.document.id!r}: an encoder-decoder needs a source and then one answer that is learnt, got "
            f"{len(sample)} tokens of which {length} are learnt"
            + (", and not the last ones" if length and not learnt[start:].all() else "")
            + ". End the document with one assistant turn, and use the prompt `TextToText`"
        )
    source = replace(
        sample,
        input_ids=sample.input_ids[:start],
        labels=np.full(start, IGNORE, dtype=np.int64),
        index=sample.index[:start],
    )
    return source, sample.input_ids[start:]


def collate_pairs(
    rows: Sequence[Sequence[Sample]], processor: Processor, *, step_tokens: int = 0, multiple: int = 8
) -> PairBatch:
    """Pack samples into rows, sources and targets apart.

    Args:
        rows: the samples that share each row, in order.
        step_tokens: target tokens of the whole optimizer step.
        multiple: the two row lengths are rounded up to multiples of this.
    Raises:
        UserError: as `split_pair`.
    """
    pairs = [[split_pair(sample) for sample in row] for row in rows]
    length = max(sum(len(target) for _, target in row) for row in pairs)
    shape = (len(pairs), -(-length // multiple) * multiple)
    target_ids = np.full(shape, processor.tokenizer.pad_id, dtype=np.int64)
    target_segments = np.zeros(shape, dtype=np.int64)
    for r, row in enumerate(pairs):
        start = 0
        for number, (_, target) in enumerate(row, start=1):
            span = slice(start, start + len(target))
            target_ids[r, span], target_segments[r, span] = target, number
            start += len(target)
    return PairBatch(
        source=collate([[source for source, _ in row] for row in pairs], processor, multiple=multiple),
        target_ids=torch.from_numpy(target_ids),
        target_segments=torch.from_numpy(target_segments),
        step_tokens=step_tokens,
    )
