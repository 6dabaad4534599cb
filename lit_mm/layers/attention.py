"""Scaled dot-product attention, by whichever kernel is fastest for the device and dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """softmax(q k^T scale + mask) v.

    In bf16 on a CPU two batched products beat torch's flash kernel, forward and backward, 2 times at 320 positions and
    4 times at the 65 of a small ViT (one core, heads of 32); everywhere else torch's choice is right.

    Args:
        q: [B, H, L, D].
        k, v: [B, H, T, D]; with fewer heads, each is shared by H / heads query heads.
        mask: boolean, broadcastable to [B, H, L, T], by one head where k has fewer: True where a query sees a key.
            Every query sees at least one.
        scale: 1 / sqrt(D) when left out.
    Returns:
        [B, H, L, D].
    """
    if q.shape[1] != k.shape[1]:
        if q.shape[2] == 1:  # cached decoding: the heads that share keys are as good as queries of one head
            return attention(q.reshape(len(q), k.shape[1], -1, q.shape[3]), k, v, mask, scale).reshape(q.shape)
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    if not _by_products(q):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    q, k, v = (x.to(torch.bfloat16) for x in (q, k, v))
    batch, heads, length, width = q.shape
    scale = width**-0.5 if scale is None else scale
    q, k, v = (x.reshape(batch * heads, -1, x.shape[-1]) for x in (q, k, v))
    if mask is None:
        scores = torch.bmm(q * scale, k.transpose(1, 2))
    else:
        bias = torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, float("-inf"))
        bias = bias.expand(batch, heads, length, k.shape[1]).reshape(batch * heads, length, k.shape[1])
        scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale)
    return torch.bmm(scores.softmax(dim=-1), v).view(batch, heads, length, -1)


def segment_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], scale: float | None = None) -> Tensor:
    """Causal attention inside each of the segments that packed rows consist of, one segment after the other.

    The same as `attention` under the mask of these segments. But with four samples in a row three quarters of what a
    mask covers is computed in vain, and on a CPU a call costs less than that: 8 rows of 320 positions with samples of
    90 take half the time, forward and backward (one core, 6 heads of 32, fp32). And a sample's result is the same bits
    in every row.

    Args:
        q: [B, H, L, D].
        k, v: [B, H, L, D]; with fewer heads, each is shared by H / heads query heads.
        lengths: of the segments in reading order, row after row; padding is a segment. They sum to B x L.
        scale: 1 / sqrt(D) when left out.
    Returns:
        [B, H, L, D].
    """
    batch, heads, length, width = q.shape
    if k.shape[1] != heads:
        k, v = (x.repeat_interleave(heads // k.shape[1], dim=1) for x in (k, v))
    # [B, H, L, D] -> [1, H, B x L, D]: positions lie apart from heads already, as a linear layer wrote them
    flat = (x.transpose(1, 2).reshape(1, batch * length, heads, width).transpose(1, 2) for x in (q, k, v))
    segments = zip(*(x.split(lengths, dim=2) for x in flat), strict=True)
    attended = torch.cat([_causal(*segment, scale) for segment in segments], dim=2)
    return attended.transpose(1, 2).reshape(batch, length, heads, width).transpose(1, 2)


def _causal(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    """One segment: each position sees itself and the earlier ones. [1, H, l, D]."""
    if _by_products(q):
        return attention(q, k, v, torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril(), scale)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)


def _by_products(q: Tensor) -> bool:
    """Is this computed in bf16 on a CPU, where torch's flash kernel is the slow one?"""
    if q.device.type != "cpu":
        return False
    return (torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else q.dtype) == torch.bfloat16


def transformers_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    segment_lengths: Sequence[int] | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Either attention in the shape that transformers' models call: [B, L, H, D] and no weights."""
    if segment_lengths is not None:
        return segment_attention(query, key, value, segment_lengths, scaling).transpose(1, 2), None
    return attention(query, key, value, attention_mask, scaling).transpose(1, 2), None


AttentionInterface.register("lit_mm", transformers_attention)
