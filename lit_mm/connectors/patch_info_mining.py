"""Patch info mining: each coarse patch reads the fine cells under it, and an MLP makes a visual token of it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_mm.connectors.mlp import MLPProjector
from lit_mm.connectors.protocol import Connector
from lit_mm.errors import UserError
from lit_mm.layers.two_maps import TwoMaps
from lit_mm.tiling.grids import SameGrid

# V views, R regions of a view, N patches of a region, M * M fine cells under a patch, D width of the coarse features,
# D' width of the fine ones, E language width


class PatchInfoMining(nn.Module, Connector):
    """Adds to each coarse feature what its query finds among the fine cells under it, and projects the sum by an MLP.

    The attention has one head of width D and the scale 1 / sqrt(D). The residual is the coarse feature itself.

    Args:
        vision_width: D.
        second_width: D'.
        language_width: E.
        scale_by_width: True multiplies visual tokens by sqrt(E), as the release's version of transformers did with all
            embeddings of Gemma. transformers 5 scales the embeddings of text alone.
        standardise: see `MLPProjector`; for the sum of coarse feature and mined values.
        start: standard deviation of the visual tokens at the start, see `MLPProjector`.
    Source: Mini-Gemini (arXiv:2403.18814), equation 1; mgm_arch.py of the release, which has norms, linears and scale.
    """

    any_grid = False
    reads_two_maps = True

    def __init__(
        self,
        vision_width: int,
        second_width: int,
        language_width: int,
        scale_by_width: bool = False,
        standardise: bool = False,
        start: float | None = None,
    ) -> None:
        super().__init__()
        self.language_width = language_width
        self.scale = math.sqrt(language_width) if scale_by_width else 1.0
        self.grid_rule = SameGrid()
        self.query = nn.Sequential(nn.LayerNorm(vision_width), nn.Linear(vision_width, vision_width))
        self.key = nn.Sequential(nn.LayerNorm(second_width), nn.Linear(second_width, vision_width))
        self.value = nn.Sequential(nn.LayerNorm(second_width), nn.Linear(second_width, vision_width))
        self.projector = MLPProjector(vision_width, language_width, standardise=standardise, start=start)

    def token_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of coarse patches -> the same rows and columns of visual tokens."""
        return self.grid_rule(grid)

    def learned(self) -> Tensor:
        """[0, E]: no learned vectors."""
        return torch.zeros(0, self.language_width)

    def mine(self, maps: TwoMaps) -> Tensor:
        """Return [V, R, N, D]: for each coarse patch the attention over the fine cells under it.

        Raises:
            UserError: the coarse patches form no square, or the side of the fine map is no multiple of theirs.
        """
        low, high = maps
        rows, side = math.isqrt(low.shape[2]), high.shape[2]
        if rows**2 != low.shape[2] or side % rows:
            raise UserError(
                f"PatchInfoMining: a region has {low.shape[2]} coarse patches and {side} x {side} fine cells; the "
                "patches form a square whose side divides that of the cells. Change the size of one of the views"
            )
        cells = high.unflatten(3, (rows, -1)).unflatten(2, (rows, -1))  # [V, R, rows, M, rows, M, D']
        cells = cells.transpose(3, 4).flatten(4, 5).flatten(2, 3)  # [V, R, N, M * M, D']
        query = self.query(low)[:, :, :, None]  # [V, R, N, 1, D]
        mined = F.scaled_dot_product_attention(
            query.flatten(0, 1), self.key(cells).flatten(0, 1), self.value(cells).flatten(0, 1)
        )
        return mined[:, :, 0].unflatten(0, low.shape[:2])

    def forward(self, maps: TwoMaps) -> Tensor:
        """Features of V views -> [V, R * N, E] visual tokens, region after region."""
        return self.projector(maps.low + self.mine(maps)).flatten(1, 2) * self.scale
