"""Initial weights that differ from torch's defaults."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lit_mm.errors import UserError


def start_at(linear: nn.Linear, scale: float) -> None:
    """Draw a linear whose outputs have standard deviation `scale` for inputs of variance 1. A bias is set to zero."""
    nn.init.normal_(linear.weight, std=scale * linear.in_features**-0.5)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def start_resampler(query: Tensor, kv_proj: nn.Module, read: tuple[nn.Linear, ...], out: nn.Linear) -> None:
    """Draw a resampler as the releases of Qwen-VL and LLaVA-UHD do.

    Weights have standard deviation 0.02; q, k and v are drawn as torch draws one matrix of [3 E, E].

    Args:
        query: [Q, E] learnt queries.
        kv_proj: linear from the vision width to E; an identity if these are equal.
        read: the linears q, k and v.
        out: linear behind the attention.
    """
    nn.init.trunc_normal_(query, std=0.02)
    for linear in (kv_proj, out):
        if isinstance(linear, nn.Linear):
            nn.init.trunc_normal_(linear.weight, std=0.02)
    for linear in read:
        nn.init.xavier_uniform_(linear.weight, gain=0.5**0.5)
    for linear in (*read, out):
        nn.init.zeros_(linear.bias)


@torch.no_grad()
def start_local(
    query: Tensor,
    kv_proj: nn.Module,
    read: tuple[nn.Linear, nn.Linear, nn.Linear],
    out: nn.Linear,
    heads: int,
    sharpness: float,
) -> None:
    """Draw a resampler whose queries start by copying the patches at their own places. All weights stay trainable.

    Queries and keys: all heads compare the few channels of the position table that change fastest, and content is zero
    in these channels, so that a patch at the distance of one query gets e^-sharpness of the weight. Values: `kv_proj`
    starts orthogonal, v and `out` as identities. A chain of random matrices, as in the releases, shrinks some
    directions, and the matrix behind it would have to undo that.

    Args:
        query: [Q, E] learnt queries, to which the table is added.
        kv_proj: linear from the vision width to E; an identity if these are equal.
        read: the linears q, k and v, each E to E.
        out: linear behind the attention, E to E.
        heads: number of attention heads.
        sharpness: exponent of the fall-off, see above.
    Raises:
        UserError: there is a single head, whose channels would all belong to the table.
    """
    if heads < 2:
        raise UserError("a resampler that starts `local` with one head has no channels left for content; give it 2")
    width = query.shape[1]
    per_head = width // heads
    count = per_head // 4  # frequencies a head has room for: sine and cosine, of column and row
    channels = [quarter * (width // 4) + fastest for quarter in range(4) for fastest in range(count)]
    fall = (1 - math.cos(10000.0 ** (-i / (width // 4))) for i in range(count))  # in Python: works on the meta device
    step = sum(fall)  # P . P' falls by this from place to place
    pick = torch.zeros(per_head, width)
    pick[range(4 * count), channels] = math.sqrt(sharpness * math.sqrt(per_head) / step)
    q, k, v = read
    for linear in (q, k):
        linear.weight.copy_(pick.repeat(heads, 1))
    for linear in (v, out):
        nn.init.eye_(linear.weight)
    mask = torch.ones(width, 1)
    mask[channels] = 0.0
    contents = [query.T]  # [E, ...] each
    if isinstance(kv_proj, nn.Linear):
        rest = [channel for channel in range(width) if channel not in channels]
        orthogonal = torch.zeros_like(kv_proj.weight)
        orthogonal[rest] = nn.init.orthogonal_(orthogonal[rest].clone())
        kv_proj.weight.copy_(orthogonal)
        contents.append(kv_proj.weight)
    for content in contents:  # of mean 0, or the layer norm would move the zeros
        mean = (content * mask).sum(dim=0) / mask.sum()
        content.copy_((content - mean) * mask)
