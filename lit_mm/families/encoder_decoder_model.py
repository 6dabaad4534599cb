"""An encoder-decoder alone, one forward: the counterpart of `model.py` for pairs of text."""

from __future__ import annotations

from collections.abc import Collection

import torch.nn.functional as F
from torch import Tensor, nn

from lit_mm.language.t5 import T5
from lit_mm.samples.batch import Batch
from lit_mm.samples.pairs import PairBatch


class EncoderDecoderModel(nn.Module):
    """Encodes the source and learns the target.

    Args:
        language: the encoder-decoder.
    """

    def __init__(self, language: T5) -> None:
        super().__init__()
        self.language = language

    def encode(self, source: Batch) -> Tensor:
        """[B, S, E] encoded states of the source."""
        return self.language.encode(self.language.embed(source.input_ids), segment_ids=source.segment_ids)

    def loss_sum(self, batch: PairBatch) -> Tensor:
        """Sum of the cross-entropy over the target tokens, fp32. Padding is not projected to the vocabulary."""
        read = self.language.shift(batch.target_ids, batch.target_segments)
        hidden = self.language(
            self.language.embed(read),
            segment_ids=batch.target_segments,
            encoded=self.encode(batch.source),
            encoded_segments=batch.source.segment_ids,
        )
        learnt = batch.target_segments > 0
        return F.cross_entropy(self.language.logits(hidden[learnt]).float(), batch.target_ids[learnt], reduction="sum")

    forward = loss_sum

    def greedy(self, batch: Batch, *, stop_ids: Collection[int], max_new_tokens: int) -> Tensor:
        """Answers [B, T] to sources, one sample a row; see `T5.greedy`."""
        return self.language.greedy(
            self.encode(batch),
            encoded_segments=batch.segment_ids,
            stop_ids=stop_ids,
            max_new_tokens=max_new_tokens,
        )
