"""CogVLM's projector: a linear with a norm, then a gated feed-forward."""

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
class GLUProjector(nn.Module, Connector):
    """Projects each patch by linear - layer norm - exact GELU - SwiGLU. The linears have no biases.

    The paper calls it a two-layer SwiGLU MLP. The release has the first linear, norm and GELU in front, and so do we:
    142.6M parameters at published size.

    Args:
        vision_width: D.
        language_width: E.
        ffn_width: hidden width of the SwiGLU.
        positions: number of patches that get a learnt vector before the projection, in the order of the patches
            (CogAgent: 256, starting at zero); 0 for none (CogVLM).
        standardise: True brings every feature vector to mean 0 and variance 1 first, see `MLPProjector`.
        start: standard deviation of the SwiGLU's last weights, times the root of `ffn_width`, at the start; None:
            torch's initial weights.
    Raises:
        UserError: a width or a number is out of its range.
    Source: arXiv:2311.03079, section 2.1; class GLU of the release's utils/models/cogvlm_model.py; `pos_embed` of
        CogAgent's visual.py.
    """

    def __init__(
        self,
        vision_width: int,
        language_width: int,
        ffn_width: int = 11008,
        positions: int = 0,
        standardise: bool = False,
        start: float | None = None,
    ) -> None:
        super().__init__()
        if ffn_width < 1 or positions < 0:
            raise UserError(f"GLUProjector: `ffn_width` >= 1 and `positions` >= 0, got {ffn_width} and {positions}")
        self.vision_width, self.language_width = vision_width, language_width
        self.any_grid = not positions
        self.grid_rule = SameGrid()
        self.standardise = standardise
        self.positions = nn.Parameter(torch.zeros(positions, vision_width)) if positions else None
        self.proj = nn.Linear(vision_width, language_width, bias=False)
        self.norm = nn.LayerNorm(language_width)
        self.gate = nn.Linear(language_width, ffn_width, bias=False)
        self.up = nn.Linear(language_width, ffn_width, bias=False)
        self.down = nn.Linear(ffn_width, language_width, bias=False)
        if start is not None:
            start_at(self.down, start)

    def token_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of patches -> the same rows and columns of visual tokens."""
        return self.grid_rule(grid)

    def learned(self) -> Tensor:
        """[0, E]: no newline, no separator."""
        return torch.zeros(0, self.language_width)  # asking a weight for its kind would gather it under ZeRO-3

    def forward(self, x: Tensor, grids: Sequence[tuple[int, int]] | None = None) -> Tensor:
        """[V, N, D] patch features -> [V, N, E] visual tokens. The `grids` of the views make no difference.

        Raises:
            UserError: the views do not have as many patches as `positions` has vectors.
        """
        if self.standardise:
            x = F.layer_norm(x, (self.vision_width,))
        if self.positions is not None:
            if x.shape[1] != len(self.positions):
                raise UserError(
                    f"GLUProjector: `positions` has vectors for {len(self.positions)} patches, but the view has "
                    f"{x.shape[1]}. Set `positions` to the number of patches of a view"
                )
            x = x + self.positions
        x = F.gelu(self.norm(self.proj(x)))
        return self.down(F.silu(self.gate(x)) * self.up(x))
