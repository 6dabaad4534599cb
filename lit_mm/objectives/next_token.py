"""Next-token prediction over supervised tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_mm.model import MultimodalModel
from lit_mm.samples.batch import TOKENS, Batch


class NextToken:
    """Cross-entropy over supervised tokens, in fp32. Only supervised places are projected to the vocabulary.

    Attributes:
        loss_by_source: [2, number of sources] sum of the losses and number of the tokens of each data source in the
            last micro-batch; None if there is only one source.
    """

    unit = TOKENS
    parts: frozenset[str] | None = None

    def __init__(self) -> None:
        self.loss_by_source: Tensor | None = None

    def __call__(self, model: MultimodalModel, batch: Batch) -> Tensor:
        """The sum over the supervised tokens of the batch."""
        hidden, ids = model(batch)
        losses = F.cross_entropy(model.language.logits(hidden).float(), ids, reduction="none")
        if batch.sources is not None:
            self.loss_by_source = by_source(losses.detach(), batch.sources, len(batch.num_by_source))
        return losses.sum()


def by_source(losses: Tensor, sources: Tensor, num_sources: int) -> Tensor:
    """[S] losses and the numbers of their sources -> [2, num_sources]: sum of the losses, and count, of each source.

    By masks and not by scattering, which is not deterministic on GPUs.
    """
    member = torch.arange(num_sources, device=sources.device)[:, None] == sources  # [num_sources, S]
    return torch.stack([torch.where(member, losses, 0).sum(dim=1), member.sum(dim=1).to(losses)])
