"""A learned newline vector beside any connector: a layout puts it at the end of each row of visual tokens."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from lit_mm.connectors.beside import Beside
from lit_mm.connectors.protocol import Gridded


class WithNewline(Beside):
    """Adds one vector of the language model's width; the layout's -1. The wrapped connector's own follow it.

    Args:
        projector: a `lit_mm.model.Connector`.
        language_width: E.
    Source: LLaVA-NeXT, `image_newline`: N(0, 1) / sqrt(E).
    """

    parts_within: ClassVar[dict[str, str]] = {"newline": "newline"}

    def __init__(self, projector: Gridded, language_width: int) -> None:
        super().__init__(projector)
        self.newline = nn.Parameter(torch.randn(language_width) * language_width**-0.5)

    def learned(self) -> Tensor:
        """[1 + K, E]: newline, then the wrapped connector's."""
        return torch.cat([self.newline[None], self.projector.learned().to(self.newline)])
