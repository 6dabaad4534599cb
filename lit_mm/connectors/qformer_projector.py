"""The Q-Former as a connector: a norm, the Q-Former without text, one linear projection."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_mm.connectors.protocol import Connector
from lit_mm.connectors.qformer import QFormer
from lit_mm.layers.start import start_at
from lit_mm.tiling.grids import FixedGrid


# V views, N features each, D vision width, Q queries, E language width
class QFormerProjector(nn.Module, Connector):
    """Compresses each view to Q visual tokens: layer norm of the features - Q-Former without text - linear.

    Args:
        vision_width: D.
        language_width: E.
        queries: Q; 32 in BLIP-2, 64 in XComposer (its "perceive sampler").
        width, layers, heads, ffn_width, cross_every, dropout: arguments of the `QFormer`.
        start: standard deviation of the visual tokens at the start; about that of the text embeddings is good. None:
            torch's initial weights, as in the releases.
    Source: arXiv:2301.12597, section 3.1; `encode_img` of the XComposer release.
    """

    reads_class_token = True  # see lit_mm.combination.legal

    def __init__(
        self,
        vision_width: int,
        language_width: int,
        queries: int = 64,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        ffn_width: int = 3072,
        cross_every: int = 2,
        dropout: float = 0.1,
        start: float | None = None,
    ) -> None:
        super().__init__()
        self.language_width = language_width
        self.grid_rule = FixedGrid(1, queries)
        self.norm = nn.LayerNorm(vision_width)
        self.qformer = QFormer(
            vision_width,
            queries=queries,
            width=width,
            layers=layers,
            heads=heads,
            ffn_width=ffn_width,
            cross_every=cross_every,
            dropout=dropout,
        )
        self.projection = nn.Linear(width, language_width)
        if start is not None:
            start_at(self.projection, start)

    def token_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Any (rows, columns) of patches -> one row of Q visual tokens."""
        return self.grid_rule(grid)

    def learned(self) -> Tensor:
        """[0, E]: no newline, no separator."""
        return torch.zeros(0, self.language_width)

    def forward(self, x: Tensor) -> Tensor:
        """[V, N, D] features, with or without a class token -> [V, Q, E] visual tokens."""
        return self.projection(self.qformer(self.norm(x)))
