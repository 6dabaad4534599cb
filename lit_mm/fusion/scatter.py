"""Fusion by scatter: visual tokens replace text embeddings at the visual places."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def scatter_visual(text: Tensor, bank: Tensor, index: Tensor, places: Tensor) -> Tensor:
    """Put vectors of the bank at the visual places of a flat row.

    A vector may be placed several times or never; its gradient is then the sum, or zero. The function uses `embedding`
    and not `bank[index]`, because the CPU backward of `embedding` adds in a fixed order: runs repeat bit for bit.

    Args:
        text: [1, T, E] text embeddings. Those at visual places are replaced and get no gradient.
        bank: [V, E] visual tokens, then learned vectors.
        index: [K] row of the bank for each visual place.
        places: [K] visual places in the row.
    Returns:
        [1, T, E], in the wider of the two dtypes.
    """
    dtype = torch.promote_types(text.dtype, bank.dtype)
    return text.to(dtype).index_copy(1, places, F.embedding(index, bank).to(dtype)[None])
