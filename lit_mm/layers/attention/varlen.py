"""Attention over a flat row by one kernel call: torch's varlen attention."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.nn.attention import SDPBackend, sdpa_kernel

from lit_mm.layers.attention.products import compute_dtype
from lit_mm.layers.attention.segments import Segments


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float | None = None, window: int | None = None
) -> Tensor:
    """Compute the same attention as `by_segment` in one kernel call.

    Deterministic algorithms force the flash kernel and its deterministic backward pass, because cuDNN's kernel has no
    deterministic form. A compiled layer cannot force that backward pass; it warns, as torch does.

    Args:
        q: [1, H, T, D].
        k, v: [1, K, S, D], K a divisor of H.
        segments: lengths of the segments, with starts on the device of q.
        scale: factor of the scores; None: 1 / sqrt(D).
        window: number of visible keys; see `segment_attention`.
    Returns:
        [1, T, H, D], in the dtype of the products.
    """
    from torch.nn.attention.varlen import varlen_attn  # an older torch does not have it: see `varlen_obstacle`

    assert segments.starts is not None, "Segments were made without the device of the attention"
    dtype = compute_dtype(q)
    rows = (x[0].transpose(0, 1).to(dtype) for x in (q, k, v))  # [T, H, D]
    deterministic = torch.are_deterministic_algorithms_enabled()
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION) if deterministic else nullcontext():
        out = varlen_attn(
            *rows,
            segments.starts,
            segments.key_starts,
            segments.longest,
            segments.longest_keys,
            scale=scale,
            window_size=(-1 if window is None else window - 1, 0 if segments.causal else -1),
            enable_gqa=q.shape[1] != k.shape[1],
        )
    if deterministic and not torch.compiler.is_compiling() and out.grad_fn is not None:
        strict_backward(out.grad_fn)
    return out[None]


def strict_backward(node: Node) -> None:
    """Run one node of the backward pass while nondeterministic kernels are an error.

    If torch only warns of them, flash attention takes its nondeterministic kernel and warns.
    """
    if torch.is_deterministic_algorithms_warn_only_enabled():
        node.register_prehook(lambda gradients: torch.use_deterministic_algorithms(True))
        node.register_hook(lambda *gradients: torch.use_deterministic_algorithms(True, warn_only=True))
