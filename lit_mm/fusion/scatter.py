"""Visual tokens take the places the processor gave them among the text embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_mm.errors import UserError


def scatter_visual(text: Tensor, bank: Tensor, index: Tensor, visual_mask: Tensor) -> Tensor:
    """Put vectors of the bank at the visual positions.

    A vector may be placed several times or never (its gradient is then the sum, or zero). `embedding` and not
    `bank[index]`: its CPU backward adds in a fixed order, so that runs repeat bit for bit.

    Args:
        text: [B, L, E] embeddings of the text, any at visual positions (no gradient reaches them there).
        bank: [K, E] visual tokens, then learned vectors.
        index: [B, L] place in the bank; any valid one where `visual_mask` is False.
        visual_mask: [B, L] True where a vector of the bank belongs.
    Returns:
        [B, L, E], in the wider of the two dtypes.
    """
    return torch.where(visual_mask.unsqueeze(-1), F.embedding(index, bank), text)


def check_counts(
    bank: Tensor, index: Tensor, visual_mask: Tensor, *, num_visual: int, num_learned: int, sample_ids: Sequence[str]
) -> None:
    """Did encoder and connector make what the processor counted, and does every index lie inside the bank?

    Args:
        bank: [K, E].
        index, visual_mask: [B, L].
        num_visual: visual tokens that the processor counted for all views.
        num_learned: the connector's learned vectors, at the end of the bank.
        sample_ids: the samples of the batch, for the message.
    Raises:
        UserError: with both numbers.
    """
    made = len(bank) - num_learned
    if made != num_visual:
        raise UserError(
            f"samples {list(sample_ids)}: the processor counted {num_visual} visual tokens, vision encoder and "
            f"connector made {made}. Is the processor of another family in use?"
        )
    used = index[visual_mask]
    if used.numel() and not 0 <= int(used.min()) <= int(used.max()) < len(bank):
        raise UserError(
            f"samples {list(sample_ids)}: the layout asks for vectors {int(used.min())} to {int(used.max())}, the bank "
            f"has {len(bank)} ({made} visual, {num_learned} learned). Does the layout fit this connector?"
        )
