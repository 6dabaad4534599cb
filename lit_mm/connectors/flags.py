"""Vectors that mark an image's beginning and end, beside any connector."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from lit_mm.connectors.beside import Beside
from lit_mm.connectors.protocol import Gridded


class WithFlags(Beside):
    """Adds two vectors of the language model's width, the layout's -1 (start) and -2 (end). The connector's own follow.

    Args:
        projector: a `lit_mm.model.Connector`.
        language_width: E.
    Source: XComposer's `flag_image_start` and `flag_image_end`: zeros, and never trained by the release.
    """

    parts_within: ClassVar[dict[str, str]] = {"start": "flags", "end": "flags"}

    def __init__(self, projector: Gridded, language_width: int) -> None:
        super().__init__(projector)
        self.start = nn.Parameter(torch.zeros(language_width))
        self.end = nn.Parameter(torch.zeros(language_width))

    def learned(self) -> Tensor:
        """[2 + K, E]: start, end, then the wrapped connector's."""
        return torch.cat([self.start[None], self.end[None], self.projector.learned().to(self.end)])
