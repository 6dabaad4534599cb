"""Learned vectors beside any connector, for whichever layout places some: newline, separator, flags."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lit_mm.connectors.beside import Beside
from lit_mm.connectors.protocol import Gridded
from lit_mm.errors import UserError


class WithLearned(Beside):
    """Adds vectors of the language model's width: the layout's -1, -2, ... in this order; the wrapped connector's own
    follow them. `WithNewline`, LLaVA-NeXT's, is the case of one.

    Args:
        projector: a `lit_mm.model.Connector`.
        names: of the vectors, each the name of a part, too.
        language_width: E.
    Raises:
        UserError: no name, or two of one name.
    """

    def __init__(self, projector: Gridded, names: Sequence[str], language_width: int) -> None:
        super().__init__(projector)
        if not names or len(set(names)) < len(names) or not all(name.isidentifier() for name in names):
            raise UserError(f"learned vectors need names that differ, such as [newline, separator], got {list(names)}")
        vectors = {name: nn.Parameter(torch.randn(language_width) * language_width**-0.5) for name in names}
        self.vectors = nn.ParameterDict(vectors)
        self.vectors.parts_within = {name: name for name in names}

    def learned(self) -> Tensor:
        """[K, E]: the vectors in order, then the wrapped connector's."""
        vectors = torch.stack(list(self.vectors.values()))
        return torch.cat([vectors, self.projector.learned().to(vectors)])
