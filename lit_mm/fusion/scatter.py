"""Visual tokens take the places the processor gave them among the text embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
