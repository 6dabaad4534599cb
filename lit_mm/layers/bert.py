"""Blocks of BERT: attention and feed-forward with the norm behind their residuals, and the head that predicts text."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_mm.layers.attention import attention
from lit_mm.layers.dropout import dropout

# N texts, L positions, S keys, W width, H heads, D width of the context

KeysAndValues = tuple[Tensor, Tensor]


class BertAttention(nn.Module):
    """Multi-head attention with its residual and the norm behind it, as in BERT."""

    def __init__(self, width: int, key_width: int, heads: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(key_width, width)
        self.value = nn.Linear(key_width, width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)

    def keys(self, context: Tensor) -> KeysAndValues:
        """Project a context [N, S, D] to keys and values, each [N, H, S, W / H]."""
        return self._split(self.key(context)), self._split(self.value(context))

    def forward(self, x: Tensor, context: KeysAndValues, mask: Tensor | None = None) -> Tensor:
        """[N, L, W] -> [N, L, W].

        Args:
            context: keys and values, see `keys`.
            mask: [N, 1, L or 1, S] False where a position may not attend; None: every position attends everywhere.
        """
        query = self._split(self.query(x))
        y = attention(query, *context, mask, dropout=self.dropout if self.training else 0.0)
        y = self.out(y.transpose(1, 2).flatten(2))
        return self.norm(x + dropout(y, self.dropout, self.training))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class BertFeedForward(nn.Module):
    """A feed-forward, linear - exact GELU - linear, with its residual and the norm behind it."""

    def __init__(self, width: int, ffn_width: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.fc1 = nn.Linear(width, ffn_width)
        self.fc2 = nn.Linear(ffn_width, width)
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, W] -> [N, L, W]."""
        y = self.fc2(F.gelu(self.fc1(x)))
        return self.norm(x + dropout(y, self.dropout, self.training))


class BertHead(nn.Module):
    """BERT's language-modelling head. Its projection to the vocabulary is the embedding table."""

    def __init__(self, width: int, vocab_size: int, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """Hidden states [..., W], table [vocabulary, W] -> [..., vocabulary]."""
        return F.linear(self.norm(F.gelu(self.dense(x))), table, self.bias)
