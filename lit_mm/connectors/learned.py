"""Learned vectors with names of the recipe, added to any connector: newline, separator, flags."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lit_mm.connectors.beside import Beside
from lit_mm.connectors.protocol import Gridded
from lit_mm.errors import UserError


class WithLearned(Beside):
    """Adds learned vectors of the language model's width to a connector. Each vector is a part of its own.

    Example: `names: [newline, separator]` makes newline a layout's -1 and separator its -2. The learned vectors of the
    wrapped connector follow: -3, ...

    Args:
        projector: the wrapped connector.
        names: names of the vectors, which are also names of parts.
        language_width: E.
    Raises:
        UserError: there is no name, a name occurs twice, or a name is no identifier.
    """

    def __init__(self, projector: Gridded, names: Sequence[str], language_width: int) -> None:
        super().__init__(projector)
        if not names or len(set(names)) < len(names) or not all(name.isidentifier() for name in names):
            raise UserError(f"learned vectors need names that differ, such as [newline, separator], got {list(names)}")
        vectors = {name: nn.Parameter(torch.randn(language_width) * language_width**-0.5) for name in names}
        self.vectors = nn.ParameterDict(vectors)
        self.vectors.parts_within = {name: name for name in names}

    def learned(self) -> Tensor:
        """[K, E]: the vectors in order, then those of the wrapped connector."""
        vectors = torch.stack(list(self.vectors.values()))
        return torch.cat([vectors, self.projector.learned().to(vectors)])
