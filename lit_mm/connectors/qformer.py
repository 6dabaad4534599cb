"""The Q-Former: learnt queries that read image features by cross-attention and share self-attention with a text."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lit_mm.errors import UserError
from lit_mm.layers.bert import BertAttention, BertFeedForward, BertHead
from lit_mm.layers.dropout import dropout

# V images, N features each, D their width, Q queries, L text positions, P = Q + L (queries first), W width, H heads

TEXT_BRANCH = "text_branch"  # part of the parameters that only a text uses
TEXT_HEAD = "text_head"  # part of the head that predicts a text
Sight = Literal["unimodal", "bidirectional", "multimodal_causal"]


def who_sees_whom(sight: Sight, num_queries: int, text_mask: Tensor) -> Tensor:
    """Build the attention mask of [queries; text] for one of the objectives that train a Q-Former.

    | sight | objective | a query sees | a text position sees |
    |---|---|---|---|
    | unimodal | contrastive | queries | text |
    | bidirectional | matching, instructions | queries and text | queries and text |
    | multimodal_causal | captioning | queries | queries, itself, the text before it |

    No position sees padding of the text.

    Args:
        sight: row of the table.
        num_queries: Q.
        text_mask: [V, L] True or 1 at text, False or 0 at padding.
    Returns:
        [V, P, P] boolean, True where the row attends to the column.
    Source: arXiv:2301.12597, figure 2. Two queries and two tokens, multimodal_causal -> rows 1100, 1100, 1110, 1111.
    """
    rows, length = text_mask.shape
    total = num_queries + length
    is_text = torch.arange(total, device=text_mask.device) >= num_queries
    real = torch.cat([text_mask.new_ones(rows, num_queries, dtype=torch.bool), text_mask.bool()], dim=1)
    if sight == "bidirectional":
        sees = torch.ones(total, total, dtype=torch.bool, device=text_mask.device)
    elif sight == "unimodal":
        sees = is_text[:, None] == is_text
    else:
        at = torch.arange(total, device=text_mask.device)
        sees = ~is_text | (is_text[:, None] & (at[:, None] >= at))
    return sees & real[:, None, :]


class Layer(nn.Module):
    """A Q-Former layer: shared self-attention, cross-attention of queries, feed-forwards of queries and of text."""

    def __init__(
        self,
        width: int,
        heads: int,
        ffn_width: int,
        vision_width: int | None,
        with_text: bool,
        dropout: float,
        eps: float,
    ) -> None:
        super().__init__()
        self.attention = BertAttention(width, width, heads, dropout, eps)
        self.cross = None if vision_width is None else BertAttention(width, vision_width, heads, dropout, eps)
        self.query_ffn = BertFeedForward(width, ffn_width, dropout, eps)
        self.text_ffn = BertFeedForward(width, ffn_width, dropout, eps) if with_text else None
        self.parts_within = {"text_ffn": TEXT_BRANCH} if with_text else {}

    def forward(self, x: Tensor, num_queries: int, features: Tensor | None, mask: Tensor | None) -> Tensor:
        """[V, P, W] -> [V, P, W].

        Args:
            num_queries: number of queries, which come first among the P positions.
            features: [V, N, D] image features; None if there are no queries.
            mask: [V, P, P] False where the row may not attend to the column; None: everyone sees everyone.
        """
        x = self.attention(x, self.attention.keys(x), None if mask is None else mask[:, None])
        queries, text = x[:, :num_queries], x[:, num_queries:]
        if num_queries:
            queries = queries if self.cross is None else self.cross(queries, self.cross.keys(features))
            queries = self.query_ffn(queries)
        if self.text_ffn is None or not text.shape[1]:
            return queries
        return torch.cat([queries, self.text_ffn(text)], dim=1)


class QFormer(nn.Module):
    """A BERT whose input is learnt queries, a text, or both; the queries also attend to an image.

    In every `cross_every`-th layer, from the first on, the queries attend to the image. Queries have no position
    embedding; the positions of the text start at 0. Queries and text share the first norm and the self-attention, but
    not the feed-forward. What only a text uses (embeddings, feed-forwards) is the part "text_branch"; the head that
    predicts its tokens is the part "text_head".

    Args:
        vision_width: D, width of the image features.
        queries: Q.
        width: W. BERT-base: 768.
        layers: number of layers. BERT-base: 12.
        heads: number of attention heads. BERT-base: 12.
        ffn_width: hidden width of the feed-forwards. BERT-base: 3072.
        cross_every: number of layers from one cross-attention to the next.
        vocab_size: number of token ids of the text branch; None builds no text branch (XComposer, BLIP-2's second
            stage).
        max_positions: longest text, tokens.
        head: True builds the head that predicts the text's tokens (BLIP-2's first stage), tied to the embedding table.
        dropout: dropout probability of hidden states and of attention.
        eps: epsilon of the layer norms.
    Raises:
        UserError: the heads do not divide the width, there are no queries or layers, or a head lacks a text branch.
    Source: arXiv:2301.12597, section 3.1; github.com/salesforce/LAVIS, lavis/models/blip2_models/Qformer.py. That code
        captions in two passes and keeps the queries' keys and values; one pass with the mask gives the same.
    """

    def __init__(
        self,
        vision_width: int,
        queries: int = 32,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        ffn_width: int = 3072,
        cross_every: int = 2,
        vocab_size: int | None = None,
        max_positions: int = 512,
        head: bool = False,
        dropout: float = 0.1,
        eps: float = 1e-12,
    ) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"QFormer: `heads` must divide `width`, got {width=}, {heads=}")
        if min(queries, layers, cross_every) < 1:
            raise UserError(
                f"QFormer: `queries`, `layers` and `cross_every` are at least 1, got {queries=}, {layers=}, "
                f"{cross_every=}"
            )
        if head and vocab_size is None:
            raise UserError("QFormer: `head` predicts text, so it needs a text branch; set `vocab_size`")
        self.width, self.dropout, self.cross_every = width, dropout, cross_every
        self.heads, self.ffn_width = heads, ffn_width
        self.queries = nn.Parameter(torch.randn(queries, width) * 0.02)
        self.words = None if vocab_size is None else nn.Embedding(vocab_size, width)
        self.positions = None if vocab_size is None else nn.Embedding(max_positions, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.layers = nn.ModuleList(
            Layer(
                width,
                heads,
                ffn_width,
                vision_width if number % cross_every == 0 else None,
                vocab_size is not None,
                dropout,
                eps,
            )
            for number in range(layers)
        )
        self.head = BertHead(width, vocab_size, eps) if head else None
        has_text = vocab_size is not None
        self.parts_within = {"words": TEXT_BRANCH, "positions": TEXT_BRANCH} if has_text else {}
        if head:
            self.parts_within["head"] = TEXT_HEAD
        self.apply(_draw)

    def forward(self, features: Tensor | None = None, ids: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Image features and text ids -> hidden states of queries and text.

        Args:
            features: [V, N, D] image features; None: the text alone is read, without queries.
            ids: [V, L] token ids; None: the queries alone are read.
            mask: [V, P, P] False where the row may not attend to the column, see `who_sees_whom`; for a text alone, its
                last L rows and columns. None: everyone sees everyone.
        Returns:
            [V, P, W]: Q queries if there are features, then L text positions if there are ids.
        Raises:
            UserError: there are neither features nor ids, ids meet no text branch, or the text is too long.
        """
        if features is None and ids is None:
            raise UserError("QFormer: got neither image features nor text ids, expected at least one of them")
        parts = [] if features is None else [self.queries.expand(len(features), -1, -1)]
        if ids is not None:
            if self.words is None or self.positions is None:
                raise UserError("QFormer: it has no text branch. Set `vocab_size`")
            if ids.shape[1] > self.positions.num_embeddings:
                raise UserError(
                    f"QFormer: a text has {ids.shape[1]} tokens, the position table {self.positions.num_embeddings}. "
                    "Shorten the text, or raise `max_positions`"
                )
            parts.append(self.words(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device)))
        x = dropout(self.norm(torch.cat(parts, dim=1)), self.dropout, self.training)  # [V, P, W]
        num_queries = 0 if features is None else len(self.queries)
        for layer in self.layers:
            x = layer(x, num_queries, features, mask)
        return x

    def logits(self, text: Tensor) -> Tensor:
        """Hidden states of text positions [..., W] -> [..., vocabulary].

        Raises:
            UserError: the Q-Former was built without `head`.
        """
        if self.head is None or self.words is None:
            raise UserError("QFormer: it has no head that predicts text. Set `head: true`")
        return self.head(text, self.words.weight)


def _draw(module: nn.Module) -> None:
    """Draw BERT's initial weights."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
