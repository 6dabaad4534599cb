"""Attention over a flat row of segments that do not attend to each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_mm.layers.attention.choice import Demand, choose
from lit_mm.layers.attention.products import attention, compute_dtype
from lit_mm.layers.attention.segments import Segments
from lit_mm.layers.attention.varlen import varlen_attention

# H query heads, K heads of keys and values, T queries and S keys of the row, l and s those of a segment, D head width


def segment_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Segments,
    scale: float | None = None,
    *,
    distance_bias: Tensor | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Compute softmax(q k^T scale + bias) v inside each segment. No mask of the whole row is built.

    Args:
        q: [1, H, T, D].
        k, v: [1, K, S, D]; each head is shared by H / K query heads.
        segments: lengths, causality and backend of the segments.
        scale: factor of the scores; None: 1 / sqrt(D).
        distance_bias: [H, 2 M + 1] biases of the scores for each distance key - query from -M to M; M is at least the
            longest segment minus one. None: no bias.
        dropout: probability at which a weight is zeroed; the caller passes 0 in evaluation.
        softcap: c bounds the scores to c tanh(scores / c); None: scores are not bounded.
        window: a query sees itself and the `window` - 1 keys before it; needs causal segments. None: all before it.
    Returns:
        [1, T, H, D]. A segment without keys gives zeros.
    Raises:
        UserError: the backend that `segments` forces cannot compute this.
    """
    demand = Demand(q.device, compute_dtype(q), q.shape[-1], distance_bias is not None, dropout > 0, bool(softcap))
    if choose(segments.backend, demand) == "varlen":
        return varlen_attention(q, k, v, segments, scale, window)
    return by_segment(
        q, k, v, segments, scale, distance_bias=distance_bias, dropout=dropout, softcap=softcap, window=window
    )


def by_segment(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Segments,
    scale: float | None = None,
    *,
    distance_bias: Tensor | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Compute attention one segment after the other. See `segment_attention`.

    With four samples in a row, a mask wastes three quarters of the computed scores. On a CPU a call per segment is
    cheaper: 8 rows of 320 positions with samples of 90 take half the time, forward and backward (one core, 6 heads of
    32, fp32). A sample's result is also bit-equal in every row.
    """
    outputs = []
    keys, values = (x.split(segments.key_lengths, dim=2) for x in (k, v))
    for query, key, value in zip(q.split(segments.lengths, dim=2), keys, values, strict=True):
        length, num_keys = query.shape[2], key.shape[2]
        if not length or not num_keys:
            outputs.append(torch.zeros_like(query, dtype=compute_dtype(q)).transpose(1, 2))
            continue
        mask, causal = None, segments.causal
        if distance_bias is not None:
            mask, causal = bias_of_segment(distance_bias, length, num_keys, causal=causal), False
        if window is not None and window < length:
            visible = (
                torch.ones(length, num_keys, dtype=torch.bool, device=q.device).tril().triu(1 - window)[None, None]
            )
            mask, causal = visible if mask is None else mask.masked_fill(~visible, float("-inf")), False
        of_segment = attention(query, key, value, mask, scale, causal=causal, dropout=dropout, softcap=softcap)
        outputs.append(of_segment.transpose(1, 2))
    return torch.cat(outputs, dim=1)


def bias_of_segment(distance_bias: Tensor, length: int, num_keys: int, *, causal: bool) -> Tensor:
    """Build the bias of one segment, [1, H, l, s].

    With biases a to e of the distances -2 to 2, two queries and three keys give the rows (c d e) and (b c d).

    Args:
        distance_bias: [H, 2 M + 1] biases by distance; see `segment_attention`.
        causal: True sets the bias of keys after the query to -inf.
    """
    zero = distance_bias.shape[1] // 2
    line = distance_bias[:, zero - length + 1 : zero + num_keys]  # distances 1 - l to s - 1
    if causal:
        line = F.pad(line[:, :length], (0, num_keys - 1), value=float("-inf"))
    return line.unfold(1, num_keys, 1).flip(1)[None]  # row i of the windows belongs to query l - 1 - i
