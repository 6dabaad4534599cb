"""A learned newline vector, added to any connector. A layout places it at the end of each row of visual tokens."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from lit_mm.connectors.beside import Beside
from lit_mm.connectors.protocol import Gridded


class WithNewline(Beside):
    """Adds one learned vector of the language model's width to a connector: a layout's -1.

    Args:
        projector: the wrapped connector. Its own learned vectors follow: -2, ...
        language_width: E.
    Source: LLaVA-NeXT, `image_newline`: N(0, 1) / sqrt(E).
    """

    parts_within: ClassVar[dict[str, str]] = {"newline": "newline"}

    def __init__(self, projector: Gridded, language_width: int) -> None:
        super().__init__(projector)
        self.newline = nn.Parameter(torch.randn(language_width) * language_width**-0.5)

    def learned(self) -> Tensor:
        """[1 + K, E]: newline, then the K vectors of the wrapped connector."""
        return torch.cat([self.newline[None], self.projector.learned().to(self.newline)])
