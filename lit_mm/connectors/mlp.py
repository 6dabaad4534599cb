"""The MLP projector, which makes one visual token of each patch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_mm.connectors.protocol import Connector
from lit_mm.errors import UserError
from lit_mm.layers.start import start_at
from lit_mm.tiling.grids import SameGrid


# V views, N patches, D vision width, E language width
class MLPProjector(nn.Module, Connector):
    """Projects each patch by linear - exact GELU - linear, with biases.

    Args:
        vision_width: D.
        language_width: E.
        depth: number of linears; 1 is LLaVA's single projection.
        standardise: True brings every feature vector to mean 0 and variance 1 first, without learnt weights. The
            releases do not; the nano vision encoder's features, which precede any last norm, have outliers 70 times as
            large.
        start: standard deviation of the visual tokens at the start for inputs of variance 1; about that of the text
            embeddings is good. None: torch's initial weights, as in the releases.
    Raises:
        UserError: the depth is below 1.
    Source: XComposer2's build_mlp.py, LLaVA-1.5 (arXiv:2310.03744).
    """

    any_grid = True

    def __init__(
        self,
        vision_width: int,
        language_width: int,
        depth: int = 2,
        standardise: bool = False,
        start: float | None = None,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise UserError(f"MLPProjector: `depth` is the number of linear layers, at least 1, got {depth}")
        self.vision_width, self.language_width = vision_width, language_width
        self.grid_rule = SameGrid()
        self.standardise = standardise
        layers: list[nn.Module] = [nn.Linear(vision_width, language_width)]
        for _ in range(depth - 1):
            layers += [nn.GELU(), nn.Linear(language_width, language_width)]
        self.mlp = nn.Sequential(*layers)
        if start is not None:
            start_at(layers[-1], start)

    def token_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of patches -> the same rows and columns of visual tokens."""
        return self.grid_rule(grid)

    def learned(self) -> Tensor:
        """[0, E]: no newline, no separator."""
        return torch.zeros(0, self.language_width)  # asking a weight for its kind would gather it under ZeRO-3

    def forward(self, x: Tensor, grids: Sequence[tuple[int, int]] | None = None) -> Tensor:
        """[V, N, D] patch features -> [V, N, E] visual tokens. The `grids` of the views make no difference."""
        return self.mlp(F.layer_norm(x, (self.vision_width,)) if self.standardise else x)
