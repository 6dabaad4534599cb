"""The base of connectors that add learned vectors to another connector."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from lit_mm.connectors.protocol import Connector, Gridded
from lit_mm.layers.protocols import complete
from lit_mm.tiling.grids import GridRule


class Beside(nn.Module, Connector):
    """A connector that wraps another one and adds learned vectors. The visual tokens are those of the wrapped one.

    Args:
        projector: the wrapped connector.
    Raises:
        UserError: the wrapped module lacks what `Connector` demands.
    """

    def __init__(self, projector: Gridded) -> None:
        super().__init__()
        complete(projector, Connector, "connector")
        self.projector = projector

    @property
    def any_grid(self) -> bool:
        """True if the wrapped connector takes views of several shapes in one call."""
        return self.projector.any_grid

    @property
    def grid_rule(self) -> GridRule:
        """The grid rule of the wrapped connector."""
        return self.projector.grid_rule

    def token_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of patches -> (rows, columns) of visual tokens, by the wrapped connector."""
        return self.projector.token_grid(grid)

    @abstractmethod
    def learned(self) -> Tensor:
        """[K, E]: the vectors that a layout calls -1, -2, ..., then those of the wrapped connector."""

    def forward(self, x: Tensor, *grids: Sequence[tuple[int, int]]) -> Tensor:
        """[V, N, D] patch features, and their `grids` if these differ -> [V, M, E] visual tokens."""
        return self.projector(x, *grids)
