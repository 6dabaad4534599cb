"""Attention over a flat row inside a compiled graph.

The loop over segments is one operation of the graph. All its operands are tensors, so one graph serves every number of
segments.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_mm.layers.attention.choice import Demand, choose
from lit_mm.layers.attention.flat import segment_attention
from lit_mm.layers.attention.products import compute_dtype
from lit_mm.layers.attention.segments import Segments
from lit_mm.layers.attention.varlen import varlen_attention

# H query heads, K heads of keys and values, T positions of the row, D head width, N segments


def compiled_attention(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float | None = None, window: int | None = None
) -> Tensor:
    """Compute `segment_attention` without bias, dropout and soft cap, for one row of queries and keys.

    Args:
        q: [1, H, T, D].
        k, v: [1, K, T, D].
        segments, scale, window: see `segment_attention`.
    Returns:
        [1, T, H, D], in the dtype of the products.
    """
    dtype = compute_dtype(q)
    if choose(segments.backend, Demand(q.device, dtype, q.shape[-1])) == "varlen":
        return varlen_attention(q, k, v, segments, scale, window)
    q, k, v = (x.to(dtype) for x in (q, k, v))  # here, because autocast is off inside the operation
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return attend_segments(q, k, v, segments.host_starts, segments.causal, scale, window)


@torch.library.custom_op("lit_mm::attend_segments", mutates_args=())
def attend_segments(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, causal: bool, scale: float, window: int | None
) -> Tensor:
    """Run the loop over segments as one operation. `starts` is `Segments.host_starts`. Returns [1, T, H, D]."""
    return segment_attention(q, k, v, segments_of(starts, causal), scale, window=window).contiguous()


@torch.library.custom_op("lit_mm::attend_segments_backward", mutates_args=())
def attend_segments_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, starts: Tensor, causal: bool, scale: float, window: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of q, k and v from the gradient [1, T, H, D]. The attention is computed again."""
    off = torch._C._SetExcludeDispatchKeyGuard  # autograd is off inside an operation and must be on here
    keys = torch._C.DispatchKey
    with off(keys.AutogradFunctionality, False), off(keys.ADInplaceOrView, False), torch.enable_grad():
        operands = [x.detach().requires_grad_() for x in (q, k, v)]
        out = segment_attention(*operands, segments_of(starts, causal), scale, window=window)
        dq, dk, dv = torch.autograd.grad(out, operands, gradient)
    return dq.contiguous(), dk.contiguous(), dv.contiguous()


def segments_of(starts: Tensor, causal: bool) -> Segments:
    """Build the segments that begin at `starts` [N + 1], for the loop."""
    return Segments(starts.diff().tolist(), causal=causal, backend="segments")


@attend_segments.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
    return q.new_empty(1, q.shape[2], q.shape[1], q.shape[3])


@attend_segments_backward.register_fake
def _(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def save_operands(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *operands, ctx.causal, ctx.scale, ctx.window = inputs
    ctx.save_for_backward(*operands)


def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    options = (ctx.causal, ctx.scale, ctx.window)
    gradients = attend_segments_backward(gradient.contiguous(), *ctx.saved_tensors, *options)
    return *gradients, None, None, None, None


attend_segments.register_autograd(backward, setup_context=save_operands)
