"""Attention over a batch of rows that are padded at their ends, such as views of several sizes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_mm.layers.attention.products import attention


def attention_by_length(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_lengths: Sequence[int] | None,
    query_lengths: Sequence[int] | None = None,
) -> Tensor:
    """Compute attention to the first keys of each row, in one call per group of neighbouring rows of the same lengths.

    Views come grouped by shape, so a batch has few such groups. No mask is built, and a flash kernel runs each group.

    Args:
        q: [B, H, L, D].
        k, v: [B, H, S, D].
        key_lengths: number of valid keys of each row, at least 1; None: all keys and queries are valid.
        query_lengths: number of valid queries of each row; the output is zero after them. None: all L are valid.
    Returns:
        [B, H, L, D].
    """
    if key_lengths is None:
        return attention(q, k, v)
    lengths = list(zip(key_lengths, query_lengths or [q.shape[2]] * len(q), strict=True))
    outputs, start = [], 0
    for (num_keys, num_queries), rows in groupby(lengths):
        end = start + len(list(rows))
        of_rows = attention(q[start:end, :, :num_queries], k[start:end, :, :num_keys], v[start:end, :, :num_keys])
        outputs.append(F.pad(of_rows, (0, 0, 0, q.shape[2] - num_queries)))
        start = end
    return torch.cat(outputs)
