"""Grid rules, as plain data: the patches of a view, and the visual tokens that a connector makes of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from lit_mm.errors import UserError
from lit_mm.tiling.plan import Size

Grid = tuple[int, int]  # (rows, columns)


class GridRule(ABC):
    """Maps (height, width) or (rows, columns) to (rows, columns). Subclasses are frozen dataclasses, which pickle."""

    @abstractmethod
    def __call__(self, size: Size) -> Grid:
        """Compute the grid of a size or of another grid.

        Raises:
            UserError: the part does not accept the size or grid.
        """


@dataclass(frozen=True)
class PatchGrid(GridRule):
    """Maps the size of a view, pixels, to its patches.

    Attributes:
        patch: side of a patch, pixels.
        name: class of the vision encoder, for errors.
    Raises:
        UserError: when called, the patch does not divide a side of the view.
    """

    patch: int
    name: str

    def __call__(self, size: Size) -> Grid:
        height, width = size
        if min(size) < self.patch or height % self.patch or width % self.patch:
            raise UserError(
                f"{self.name}: a view must be a multiple of the patch, {self.patch} pixels, got {height} x {width}"
            )
        return height // self.patch, width // self.patch


@dataclass(frozen=True)
class SameGrid(GridRule):
    """Gives one visual token for each patch."""

    def __call__(self, size: Size) -> Grid:
        return size


@dataclass(frozen=True)
class FixedGrid(GridRule):
    """Gives the same grid for every view.

    Attributes:
        rows, columns: the grid.
        square: class of a connector that reads square grids of patches only, for errors; "" if it reads any.
    Raises:
        UserError: when called, the grid is not square, but has to be.
    """

    rows: int
    columns: int
    square: str = ""

    def __call__(self, size: Size) -> Grid:
        if self.square and size[0] != size[1]:
            raise UserError(f"{self.square}: reads square grids of patches, got {size[0]} x {size[1]}")
        return self.rows, self.columns


@dataclass(frozen=True)
class MergedGrid(GridRule):
    """Gives one visual token for each block of patches.

    Attributes:
        merge: side of a block, patches.
        name: class of the connector, for errors.
    Raises:
        UserError: when called, the sides of the grid do not divide.
    """

    merge: int
    name: str

    def __call__(self, size: Size) -> Grid:
        rows, columns = size
        if rows % self.merge or columns % self.merge:
            raise UserError(
                f"{self.name}(merge={self.merge}) needs a grid of patches that {self.merge} divides, got {rows} x "
                f"{columns}. Choose another tile size"
            )
        return rows // self.merge, columns // self.merge


@dataclass(frozen=True)
class RegionGrid(GridRule):
    """Gives the patches of all regions of a view, one region below the other.

    Attributes:
        size: side of the only views that are accepted, pixels.
        side: number of patches per side of a region.
        regions: number of regions.
    Raises:
        UserError: when called, the view has another size.
    """

    size: int
    side: int
    regions: int

    def __call__(self, size: Size) -> Grid:
        if tuple(size) != (self.size, self.size):
            raise UserError(
                f"the vision encoder reads views of {self.size} x {self.size} pixels, got {size[0]} x {size[1]}. Set "
                "the size of the tiling"
            )
        return self.regions * self.side, self.side


@dataclass(frozen=True)
class HalvedColumns(GridRule):
    """Gives one visual token for each 2 x 2 patches, column by column; an odd side is rounded up."""

    def __call__(self, size: Size) -> Grid:
        rows, columns = size
        return -(-columns // 2), -(-rows // 2)


@dataclass(frozen=True)
class TokenGrid(GridRule):
    """Maps the size of a view, pixels, to its visual tokens, through the patches.

    Attributes:
        patches: rule of the vision encoder.
        tokens: rule of the connector.
    """

    patches: GridRule
    tokens: GridRule

    def __call__(self, size: Size) -> Grid:
        return self.tokens(self.patches(size))


@dataclass(frozen=True)
class GroupedGrid(GridRule):
    """Gives one visual token for each group of patches that are neighbours in a row.

    Attributes:
        group: number of patches of a group.
        name: class of the connector, for errors.
    Raises:
        UserError: when called, the sides of the grid do not divide.
    """

    group: int
    name: str

    def __call__(self, size: Size) -> Grid:
        rows, columns = size
        if columns % self.group:
            raise UserError(
                f"{self.name}(group={self.group}) needs rows of patches that {self.group} divides, got {rows} x "
                f"{columns} patches. Choose another view size"
            )
        return rows, columns // self.group
