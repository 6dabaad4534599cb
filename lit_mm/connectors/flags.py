"""Learned vectors that mark the start and the end of an image, added to any connector."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from lit_mm.connectors.beside import Beside
from lit_mm.connectors.protocol import Gridded


class WithFlags(Beside):
    """Adds two learned vectors to a connector: start, a layout's -1, and end, its -2.

    Args:
        projector: the wrapped connector. Its own learned vectors follow: -3, ...
        language_width: E.
    Source: XComposer's `flag_image_start` and `flag_image_end`; both start at zero, and the release never trains them.
    """

    parts_within: ClassVar[dict[str, str]] = {"start": "flags", "end": "flags"}

    def __init__(self, projector: Gridded, language_width: int) -> None:
        super().__init__(projector)
        self.start = nn.Parameter(torch.zeros(language_width))
        self.end = nn.Parameter(torch.zeros(language_width))

    def learned(self) -> Tensor:
        """[2 + K, E]: start, end, then the K vectors of the wrapped connector."""
        return torch.cat([self.start[None], self.end[None], self.projector.learned().to(self.end)])
