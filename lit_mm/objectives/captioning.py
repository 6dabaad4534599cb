"""The captioning objective (LM): next-token prediction by the image-grounded decoder."""

from __future__ import annotations

from torch import Tensor

from lit_mm.objectives.image_text import ImageTextModel
from lit_mm.objectives.next_token import NextToken
from lit_mm.samples.batch import TOKENS, Batch


class Captioning:
    """Sums the cross-entropy of the captions' tokens, given the image.

    Args:
        label_smoothing: share of the target's probability that is spread over the vocabulary. BLIP: 0.1.
    Raises:
        UserError: the label smoothing is out of its range.
    Source: arXiv:2201.12086, section 3.2.
    """

    unit = TOKENS
    parts = frozenset({"vision", "text", "decoder"})

    def __init__(self, label_smoothing: float = 0.1) -> None:
        self.next_token = NextToken(label_smoothing)

    def __call__(self, model: ImageTextModel, batch: Batch) -> Tensor:
        """Return the sum over the supervised tokens of the batch."""
        return self.next_token(model, batch)
