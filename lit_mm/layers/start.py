"""Where fresh weights start, apart from torch's own defaults."""

from __future__ import annotations

from torch import Tensor, nn


def start_at(linear: nn.Linear, scale: float) -> None:
    """Draw a linear whose outputs have standard deviation `scale` where its inputs have variance 1; a bias is zero."""
    nn.init.normal_(linear.weight, std=scale * linear.in_features**-0.5)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def start_resampler(query: Tensor, kv_proj: nn.Module, read: tuple[nn.Linear, ...], out: nn.Linear) -> None:
    """As Qwen-VL's and LLaVA-UHD's releases: 0.02 wide, but q, k and v as torch draws one matrix of [3 E, E].

    Args:
        query: [Q, E] learnt queries.
        kv_proj: vision width to E; no linear where these are equal.
        read, out: q, k and v; what follows the attention.
    """
    nn.init.trunc_normal_(query, std=0.02)
    for linear in (kv_proj, out):
        if isinstance(linear, nn.Linear):
            nn.init.trunc_normal_(linear.weight, std=0.02)
    for linear in read:
        nn.init.xavier_uniform_(linear.weight, gain=0.5**0.5)
    for linear in (*read, out):
        nn.init.zeros_(linear.bias)
