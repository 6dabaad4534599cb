"""A learned newline vector beside any connector: a layout puts it at the end of each row of visual tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class WithNewline(nn.Module):
    """Adds one vector of the language model's width; the layout's -1. The wrapped connector's own follow it.

    Args:
        projector: a `lit_mm.model.Connector`.
        language_width: E.
    Source: LLaVA-NeXT, `image_newline`: N(0, 1) / sqrt(E).
    """

    def __init__(self, projector: nn.Module, language_width: int) -> None:
        super().__init__()
        self.projector = projector
        self.newline = nn.Parameter(torch.randn(language_width) * language_width**-0.5)

    def token_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """That of the wrapped connector."""
        return self.projector.token_grid(grid)

    def learned(self) -> Tensor:
        """[1 + K, E]: newline, then the wrapped connector's."""
        return torch.cat([self.newline[None], self.projector.learned().to(self.newline)])

    @property
    def any_grid(self) -> bool:
        """Does the wrapped connector take views of several shapes?"""
        return getattr(self.projector, "any_grid", False)

    def forward(self, x: Tensor, *grids: Sequence[tuple[int, int]]) -> Tensor:
        """[V, N, D] patch features, and their `grids` where they differ -> [V, M, E] visual tokens."""
        return self.projector(x, *grids)
