"""Next-token prediction over supervised tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_mm.errors import UserError
from lit_mm.model import MultimodalModel
from lit_mm.objectives.token_losses import token_losses
from lit_mm.samples.batch import TOKENS, Batch


class NextToken:
    """Sums the cross-entropy over supervised tokens, in fp32. Only supervised places are projected to the vocabulary.

    Args:
        label_smoothing: share of the target's probability that is spread over the vocabulary, from 0 to below 1.
    Raises:
        UserError: the label smoothing is out of its range.
    Attributes:
        loss_by_source: [2, number of sources] sum of the losses and number of the tokens of each data source in the
            last micro-batch; None if there is only one source.
    """

    unit = TOKENS
    parts: frozenset[str] | None = None

    def __init__(self, label_smoothing: float = 0.0) -> None:
        if not 0 <= label_smoothing < 1:
            raise UserError(f"NextToken: `label_smoothing` is at least 0 and below 1, got {label_smoothing}")
        self.label_smoothing = label_smoothing
        self.loss_by_source: Tensor | None = None

    def __call__(self, model: MultimodalModel, batch: Batch) -> Tensor:
        """Return the sum over the supervised tokens of the batch."""
        hidden, ids = model(batch)
        losses = token_losses(model.language, hidden, ids, self.label_smoothing)
        if batch.sources is not None:
            self.loss_by_source = by_source(losses.detach(), batch.sources, len(batch.num_by_source))
        return losses.sum()


def by_source(losses: Tensor, sources: Tensor, num_sources: int) -> Tensor:
    """Sum [S] losses by source; return [2, num_sources] sums and counts.

    It uses masks and not scattering, which is not deterministic on GPUs.
    """
    member = torch.arange(num_sources, device=sources.device)[:, None] == sources  # [num_sources, S]
    return torch.stack([torch.where(member, losses, 0).sum(dim=1), member.sum(dim=1).to(losses)])
