"""Visual tokens take the places the processor gave them among the text embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def scatter_visual(text: Tensor, bank: Tensor, index: Tensor, places: Tensor) -> Tensor:
    """Put vectors of the bank at the visual places of a flat row.

    A vector may be placed several times or never: its gradient is then the sum, or zero. `embedding` and not
    `bank[index]`: its CPU backward adds in a fixed order, so that runs repeat bit for bit.

    Args:
        text: [1, T, E] embeddings of the text, any at visual places; no gradient reaches them there.
        bank: [V, E] visual tokens, then learned vectors.
        index: [K] number of the vector that each visual place takes.
        places: [K] visual places in the row.
    Returns:
        [1, T, E], in the wider of the two dtypes.
    """
    dtype = torch.promote_types(text.dtype, bank.dtype)
    return text.to(dtype).index_copy(1, places, F.embedding(index, bank).to(dtype)[None])
