"""What is common to learned vectors beside a connector, whichever they are: the connector does all the rest."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from lit_mm.connectors.protocol import Connector, Gridded
from lit_mm.layers.protocols import complete
from lit_mm.tiling.grids import GridRule


class Beside(nn.Module, Connector):
    """A `lit_mm.model.Connector` that adds learned vectors to those of another, and leaves its visual tokens alone.

    Args:
        projector: the other.
    """

    def __init__(self, projector: Gridded) -> None:
        super().__init__()
        complete(projector, Connector, "connector")
        self.projector = projector

    @property
    def any_grid(self) -> bool:
        """Does the wrapped connector take views of several shapes together?"""
        return self.projector.any_grid

    @property
    def grid_rule(self) -> GridRule:
        """Rule of the wrapped connector."""
        return self.projector.grid_rule

    def token_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """That of the wrapped connector."""
        return self.projector.token_grid(grid)

    @abstractmethod
    def learned(self) -> Tensor:
        """[K, E]: the vectors in the order of their names in a layout (-1, -2, ...), then the wrapped connector's."""

    def forward(self, x: Tensor, *grids: Sequence[tuple[int, int]]) -> Tensor:
        """[V, N, D] patch features, and their `grids` where they differ -> [V, M, E] visual tokens."""
        return self.projector(x, *grids)
