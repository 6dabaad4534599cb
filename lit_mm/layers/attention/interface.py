"""Registers the attention of this package with transformers' models.

No mask function is registered. So transformers builds no mask and does not search the positions for packed samples,
a search that would wait for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from lit_mm.errors import UserError
from lit_mm.layers.attention.compiled import compiled_attention
from lit_mm.layers.attention.flat import segment_attention
from lit_mm.layers.attention.products import attention
from lit_mm.layers.attention.segments import Segments

NAME = "lit_mm"


def transformers_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    segments: Segments | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Compute attention over a flat row, or of one new token per sample over cached keys.

    Args:
        module: transformers' attention module; it is not used.
        query, key, value: [B, heads, length, D].
        attention_mask: [B, 1, 1, S] mask for cached decoding, True where the new token sees a key; None: it sees all
            keys.
        segments: lengths of a flat row; None: cached decoding.
        scaling, dropout, softcap, sliding_window: see `segment_attention`.
    Returns:
        [B, length, heads, D], and None in place of attention weights.
    Raises:
        UserError: several positions with neither segments nor a mask.
    """
    if segments is not None:
        if torch.compiler.is_compiling() and not dropout and not softcap:
            return compiled_attention(query, key, value, segments, scaling, sliding_window), None
        out = segment_attention(
            query, key, value, segments, scaling, dropout=dropout, softcap=softcap, window=sliding_window
        )
        return out, None
    if attention_mask is None and query.shape[2] > 1:
        raise UserError(
            f"attention over {query.shape[2]} positions needs `segments`, the lengths of the samples, or a "
            "mask of shape [B, 1, L, S]"
        )
    if sliding_window is not None and query.shape[2] == 1:  # keys are aligned at their ends
        key, value = key[:, :, -sliding_window:], value[:, :, -sliding_window:]
        attention_mask = None if attention_mask is None else attention_mask[..., -sliding_window:]
    out = attention(query, key, value, attention_mask, scaling, dropout=dropout, softcap=softcap)
    return out.transpose(1, 2), None


AttentionInterface.register(NAME, transformers_attention)
