"""Attention over a batch of equally long rows by torch's kernels, or by batched products if these are faster."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_mm.layers.autocast import without_autocast

# B batch, H query heads, K heads of keys and values, G = H / K that share a key, L queries, S keys, D head width


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    *,
    causal: bool = False,
    dropout: float = 0.0,
    softcap: float | None = None,
) -> Tensor:
    """Compute softmax(q k^T scale + mask) v.

    In bf16 on a CPU two batched products beat torch's flash kernel, forward and backward, 2 times at 320 positions and
    4 times at the 65 of a small ViT (one core, heads of 32); everywhere else torch's choice is right. The products
    compute their softmax again in the backward pass and keep none. A soft cap needs products on every device.

    Args:
        q: [B, H, L, D].
        k, v: [B, K, S, D]; each head is shared by H / K query heads.
        mask: broadcastable to [B, H, L, S]. Boolean: True where a query sees a key, and every query sees at least one.
            Otherwise it is added to the scores, and may need a gradient.
        scale: 1 / sqrt(D) when left out.
        causal: query i sees the keys up to i; L = S, and there is no mask.
        dropout: probability at which a weight is zeroed; the caller passes 0 in evaluation.
        softcap: c bounds the scores to c tanh(scores / c), before the mask; None: scores are not bounded.
    Returns:
        [B, H, L, D].
    """
    if q.shape[2] == 1 and q.shape[1] != k.shape[1] and (mask is None or mask.shape[1] == 1):
        # Cached decoding: heads that share keys become queries of one head. On a CPU that takes 15 ms where
        # `enable_gqa` takes 18 and repeated keys 326 (64 x 32 heads over 600 keys of 8 heads, one core).
        shared = q.reshape(len(q), k.shape[1], -1, q.shape[3])
        return attention(shared, k, v, mask, scale, dropout=dropout, softcap=softcap).reshape(q.shape)
    if softcap is not None or (not dropout and _fast_products(q)):
        return _products(q, k, v, mask, scale, causal, dropout, softcap)
    grouped = q.shape[1] != k.shape[1]
    # No fused kernel of a GPU takes groups and a mask. On a CPU, repeated keys cost 7 to 25 % of the attention and
    # give a model of shared keys the bits of one whose keys are copies: losses do not depend on how a kernel groups.
    if grouped and (q.device.type == "cpu" or mask is not None):
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        grouped = False
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(compute_dtype(q))
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale, enable_gqa=grouped
    )


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of products of x, with autocast taken into account."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def _fast_products(q: Tensor) -> bool:
    """Return True in bf16 on a CPU, where products are faster than torch's flash kernel."""
    return q.device.type == "cpu" and compute_dtype(q) == torch.bfloat16


def _products(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float | None,
    causal: bool,
    dropout: float,
    softcap: float | None,
) -> Tensor:
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    dtype = compute_dtype(q)
    q, k, v = (x.to(dtype) for x in (q, k, v))
    if mask is not None:
        mask = torch.where(mask, 0.0, -torch.inf).to(dtype) if mask.dtype == torch.bool else mask.to(dtype)
    with without_autocast(q):
        if dropout:
            scores, _ = _scores(q, k, mask, scale, causal, softcap)
            weights = F.dropout(_softmax(scores), dropout)
            return torch.bmm(weights, v.flatten(0, 1)).view(*q.shape[:3], -1)
        return _RecomputedProducts.apply(q, k, v, mask, scale, causal, softcap)


def _scores(
    q: Tensor, k: Tensor, bias: Tensor | None, scale: float, causal: bool, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """Compute scores [B K, G L, S], and tanh(scores / softcap) of the same shape, which is None without a soft cap.

    Args:
        bias: broadcastable to [B, H, L, S], in the dtype of q.
        causal: query i sees the keys up to i; there is no bias.
    """
    batch, heads, length, width = q.shape
    shared, num_keys = k.shape[1:3]
    queries = q.reshape(batch * shared, -1, width)
    keys = k.flatten(0, 1).transpose(1, 2)
    if causal:
        bias = torch.full((1, 1, length, length), -torch.inf, dtype=q.dtype, device=q.device).triu(1)
    if bias is not None and softcap is None and bias.shape[:2] == (1, 1):  # the product adds it
        bias = bias.expand(1, heads // shared, length, num_keys).reshape(1, -1, num_keys)
        return torch.baddbmm(bias, queries, keys, alpha=scale), None
    scores = torch.baddbmm(q.new_empty(1, 1, 1), queries, keys, beta=0, alpha=scale)
    tanh = None
    if softcap is not None:
        tanh = (scores / softcap).tanh()
        scores = tanh * softcap
    if bias is not None:
        bias = bias.unsqueeze(2) if bias.shape[1] == 1 else bias.unflatten(1, (shared, -1))
        scores.view(batch, shared, -1, length, num_keys).add_(bias)
    return scores, tanh


def _softmax(scores: Tensor) -> Tensor:
    """Compute the softmax over the last dimension, in fp32 where scores are narrower.

    Torch's own softmax of bf16 takes two to three times as long on a CPU at widths that no vector divides (one core, 90
    keys: 98 us against 38), and rounds alike.
    """
    return scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float)).to(scores.dtype)


class _RecomputedProducts(torch.autograd.Function):
    """Attention by batched products. The backward pass computes the weights again. For arguments see `_scores`."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        scale: float,
        causal: bool,
        softcap: float | None,
    ) -> Tensor:
        scores, _ = _scores(q, k, bias, scale, causal, softcap)
        ctx.save_for_backward(q, k, v, bias)
        ctx.scale, ctx.causal, ctx.softcap = scale, causal, softcap
        return torch.bmm(_softmax(scores), v.flatten(0, 1)).view(*q.shape[:3], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias = ctx.saved_tensors
        with without_autocast(q):
            scores, tanh = _scores(q, k, bias, ctx.scale, ctx.causal, ctx.softcap)
            weights = _softmax(scores)
            stacked = gradient.reshape(len(weights), -1, gradient.shape[-1])  # [B K, G L, D]
            of_v = torch.bmm(weights.transpose(1, 2), stacked)
            of_scores = torch.bmm(stacked, v.flatten(0, 1).transpose(1, 2))
            of_scores = torch.ops.aten._softmax_backward_data(of_scores, weights, -1, weights.dtype)
            of_bias = None
            if bias is not None and ctx.needs_input_grad[3]:
                of_bias = of_scores.view(*q.shape[:3], k.shape[2]).sum_to_size(bias.shape)
            if tanh is not None:
                of_scores = of_scores * (1 - tanh.square())
            zero = q.new_empty(1, 1, 1)
            of_q = torch.baddbmm(zero, of_scores, k.flatten(0, 1), beta=0, alpha=ctx.scale)
            queries = q.reshape(len(weights), -1, q.shape[-1])
            of_k = torch.baddbmm(zero, of_scores.transpose(1, 2), queries, beta=0, alpha=ctx.scale)
        return of_q.view(q.shape), of_k.view(k.shape), of_v.view(v.shape), of_bias, None, None, None
