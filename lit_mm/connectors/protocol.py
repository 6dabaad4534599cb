"""The protocol of connectors."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal, Protocol

from torch import Tensor

from lit_mm.tiling.grids import GridRule


class Connector(Protocol):
    """[V, N, D] patch features -> [V, M, E] visual tokens.

    A class that extends this protocol gets its defaults. A plain module needs `token_grid` and `learned` alone: it gets
    the other attributes when the model is composed.

    Attributes:
        any_grid: True if it also takes the `grids` of the views, where these differ; its output is then padded to the
            longest view, and the valid tokens of a view come first.
        grids: grids of patches that it takes; None if `token_grid` says so, by its errors.
        order: order of its visual tokens: that of the patches, row by row or column by column. Not read for a connector
            that makes the same number of tokens of every grid: these have no place in the image.
        reads_class_token: True if it accepts a class token before the patches.
        reads_two_maps: True if it reads `lit_mm.layers.two_maps.TwoMaps` in place of patch features.
        reads_text: True if it also takes the `lit_mm.samples.batch.Texts` of the samples that show the views.
    """

    any_grid: bool = False
    grids: Literal["any", "square", "one"] | None = None
    order: Literal["rows", "columns"] = "rows"
    reads_class_token: bool = False
    reads_two_maps: bool = False
    reads_text: bool = False

    @abstractmethod
    def token_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of patches -> (rows, columns) of visual tokens."""

    @abstractmethod
    def learned(self) -> Tensor:
        """[K, E] vectors that a layout may place between visual tokens (newline, separator); [0, E] for none."""

    @abstractmethod
    def __call__(self, *inputs: Any) -> Tensor:
        """Visual tokens of the views, see the class."""


class Gridded(Connector, Protocol):
    """A connector whose token counts a processor can compute without it, as families need.

    Attributes:
        grid_rule: rule (rows, columns) of patches -> (rows, columns) of visual tokens.
    """

    grid_rule: GridRule
