"""A connector that hands patch features to the language model unchanged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lit_mm.connectors.protocol import Connector
from lit_mm.errors import UserError
from lit_mm.tiling.grids import SameGrid


class PassThrough(nn.Module, Connector):
    """Makes one visual token of each patch, which is the patch feature itself. It has no parameters.

    Args:
        vision_width: width of the patch features.
        language_width: width of the visual tokens.
    Raises:
        UserError: the widths differ.
    Source: Fuyu-8B, whose patches enter the decoder directly.
    """

    any_grid = True

    def __init__(self, vision_width: int, language_width: int) -> None:
        super().__init__()
        if vision_width != language_width:
            raise UserError(
                f"PassThrough: the features of the vision encoder have width {vision_width}, the language model has "
                f"width {language_width}. Set `width` of the vision encoder to {language_width}, or choose a projector"
            )
        self.language_width = language_width
        self.grid_rule = SameGrid()

    def token_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of patches -> the same rows and columns of visual tokens."""
        return self.grid_rule(grid)

    def learned(self) -> Tensor:
        """[0, E]: no learned vectors."""
        return torch.zeros(0, self.language_width)

    def forward(self, x: Tensor, grids: Sequence[tuple[int, int]] | None = None) -> Tensor:
        """[V, N, E] patch features -> the same tensor. The `grids` of the views make no difference."""
        return x
