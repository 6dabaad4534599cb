"""Attention: one function per layout of its operands. Each call runs on a backend that can compute it.

- `attention`: a batch of equally long rows, [B, H, L, D]. See `products.py`.
- `attention_by_length`: a batch of rows padded at their ends, whose lengths the host knows. See `lengths.py`.
- `segment_attention`: a flat row of segments that are blind to each other, [1, H, T, D]. See `flat.py`.
"""

from lit_mm.layers.attention.choice import Backend
from lit_mm.layers.attention.flat import segment_attention
from lit_mm.layers.attention.interface import NAME
from lit_mm.layers.attention.lengths import attention_by_length
from lit_mm.layers.attention.products import attention
from lit_mm.layers.attention.segments import Segments

__all__ = ["NAME", "Backend", "Segments", "attention", "attention_by_length", "segment_attention"]
