"""The Q-Former with its text branch as a connector, and the heads by which it compares images with texts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_mm.connectors.protocol import Connector
from lit_mm.connectors.qformer import QFormer, who_sees_whom
from lit_mm.errors import UserError
from lit_mm.layers.start import start_at
from lit_mm.samples.batch import Texts
from lit_mm.tiling.grids import FixedGrid
from lit_mm.weights.agreement import Difference
from lit_mm.weights.config_tables import BERT_ACTIVATION, QFORMER_KINDS, compare_bert

# V views, N features each, D vision width, Q queries, W Q-Former width, L text positions, C channels of a comparison,
# E language width


class QueryContrast(nn.Module):
    """Projections of queries and text to one space, and the temperature by which similarities are divided.

    Args:
        text_width: W.
        width: C. Published: 256.
        temperature: initial temperature, which is learnt without a limit.
    """

    def __init__(self, text_width: int, width: int, temperature: float = 0.07) -> None:
        super().__init__()
        self.vision = nn.Linear(text_width, width)
        self.text = nn.Linear(text_width, width)
        self.temperature = nn.Parameter(torch.full((1,), temperature))  # FSDP2 and DeepSpeed refuse shape []


class QueryMatching(nn.Module):
    """Two logits of a pair, no match and match: the mean over the queries."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, 2)

    def forward(self, queries: Tensor) -> Tensor:
        """[V, Q, W] -> [V, 2]."""
        return self.head(queries).mean(dim=1)


class PairedQFormer(nn.Module, Connector):
    """Compresses each view to Q visual tokens: layer norm of the features - Q-Former - linear.

    It is `QFormerProjector` with more parts: "connector" (norm, queries, self-attention, cross-attention, feed-forwards
    of the queries), "projection", "text_branch" and "text_head" (see `QFormer`), "contrast" and "matching". So a
    stage can train the Q-Former without its projection, or the projection alone.

    Args:
        vision_width: D.
        language_width: E.
        queries, width, layers, heads, ffn_width, cross_every, vocab_size, max_positions, head, dropout: arguments of
            the `QFormer`. BLIP-2's `vocab_size` is 30523, BERT's and [DEC].
        contrast_width: C; builds the heads that compare images with texts. None: no heads.
        reads_text: True if the queries also attend to the sample's second text, as in InstructBLIP.
        decoder_id: id of the token that starts a text to be predicted. BLIP-2: 30522, [DEC].
        norm_eps: epsilon of the norm of the features.
        start: standard deviation of the visual tokens at the start; None: torch's initial weights, as in the releases.
        weights: reference of the checkpoint that `load_pretrained` loads later; the constructor reads nothing.
    Raises:
        UserError: the Q-Former must read text or compare texts, and has no text branch.
    Source: arXiv:2301.12597, section 3.1; lavis/models/blip2_models/blip2_qformer.py of github.com/salesforce/LAVIS.
    """

    reads_class_token = True  # see lit_mm.combination.legal

    def __init__(
        self,
        vision_width: int,
        language_width: int,
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
        contrast_width: int | None = None,
        reads_text: bool = False,
        decoder_id: int = 30522,
        norm_eps: float = 1e-5,
        start: float | None = None,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if vocab_size is None and (reads_text or contrast_width is not None):
            raise UserError(
                "PairedQFormer: `reads_text` and `contrast_width` need a text branch; set `vocab_size` to the size of "
                "the vocabulary that the Q-Former reads"
            )
        self.language_width, self.reads_text, self.weights = language_width, reads_text, weights
        self.decoder_id = decoder_id
        self.grid_rule = FixedGrid(1, queries)
        self.norm = nn.LayerNorm(vision_width, eps=norm_eps)
        self.qformer = QFormer(
            vision_width,
            queries=queries,
            width=width,
            layers=layers,
            heads=heads,
            ffn_width=ffn_width,
            cross_every=cross_every,
            vocab_size=vocab_size,
            max_positions=max_positions,
            head=head,
            dropout=dropout,
        )
        self.projection = nn.Linear(width, language_width)
        if start is not None:
            start_at(self.projection, start)
        self.contrast = None if contrast_width is None else QueryContrast(width, contrast_width)
        self.matching = None if contrast_width is None else QueryMatching(width)
        heads_of_pairs = {} if contrast_width is None else {"contrast": "contrast", "matching": "matching"}
        self.parts_within = {"projection": "projection", **heads_of_pairs}

    def compare_config(self, config: dict[str, Any]) -> list[Difference]:
        """Compare the part with the config.json of its weights, see `lit_mm.weights.agreement`."""
        qformer = self.qformer
        numbers = {
            "width": qformer.width,
            "layers": len(qformer.layers),
            "heads": qformer.heads,
            "ffn_width": qformer.ffn_width,
            "cross_every": qformer.cross_every,
            "vision_width": self.norm.normalized_shape[0],
            "eps": qformer.norm.eps,
            "activation": BERT_ACTIVATION,
        }
        if qformer.positions is not None:
            numbers["max_positions"] = qformer.positions.num_embeddings
        advice = {
            "eps": "take another part for these weights",
            "vision_width": "take the vision encoder of these weights",
        }
        return compare_bert(config, numbers, "qformer_config", QFORMER_KINDS, advice)

    def token_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Any (rows, columns) of patches -> one row of Q visual tokens."""
        return self.grid_rule(grid)

    def learned(self) -> Tensor:
        """[0, E]: no newline, no separator."""
        return torch.zeros(0, self.language_width)

    def forward(self, x: Tensor, texts: Texts | None = None) -> Tensor:
        """[V, N, D] features, with or without a class token, and the texts of their samples -> [V, Q, E]."""
        features = self.norm(x)
        hidden = self.qformer(features) if texts is None else self.read(features, texts)[:, : len(self.qformer.queries)]
        return self.projection(hidden)

    def read(self, features: Tensor, texts: Texts) -> Tensor:
        """Normed features [V, N, D] and texts [V, L] -> [V, Q + L, W]; everyone sees everyone but padding."""
        sees = who_sees_whom("bidirectional", len(self.qformer.queries), texts.mask)
        return self.qformer(features, texts.ids, sees)

    def match(self, features: Tensor, texts: Texts) -> Tensor:
        """Normed features [V, N, D] and texts [V, L] -> logits [V, 2] of no match and match.

        Raises:
            UserError: the Q-Former was built without `contrast_width`.
        """
        return self.heads()[1](self.read(features, texts)[:, : len(self.qformer.queries)])

    def encode_image(self, features: Tensor) -> Tensor:
        """Normed features [V, N, D] -> [V, Q, C] unit vectors.

        Raises:
            UserError: see `match`.
        """
        return F.normalize(self.heads()[0].vision(self.qformer(features)).float(), dim=-1)

    def encode_text(self, texts: Texts) -> Tensor:
        """Texts [V, L] -> [V, C] unit vectors of their first positions.

        Raises:
            UserError: see `match`.
        """
        sees = texts.mask[:, None, :].expand(-1, texts.mask.shape[1], -1)
        return F.normalize(self.heads()[0].text(self.qformer(None, texts.ids, sees)[:, 0]).float(), dim=-1)

    def predict(self, features: Tensor, texts: Texts) -> Tensor:
        """Normed features [V, N, D] and texts [V, L] -> [V, L, W], which predict each next token of the text.

        Queries do not see the text. [DEC] replaces the first token.
        """
        ids = texts.ids.index_fill(1, texts.ids.new_zeros(1), self.decoder_id)
        count = len(self.qformer.queries)
        return self.qformer(features, ids, who_sees_whom("multimodal_causal", count, texts.mask))[:, count:]

    def heads(self) -> tuple[QueryContrast, QueryMatching]:
        """Return the heads that compare images with texts.

        Raises:
            UserError: see `match`.
        """
        if self.contrast is None or self.matching is None:
            raise UserError("PairedQFormer: it has no heads for comparison. Set `contrast_width`")
        return self.contrast, self.matching
