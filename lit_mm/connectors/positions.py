"""A learnt table of positions that is added to the features of a vision encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_mm.errors import UserError


# V views, N patches, D width
class PositionTable(nn.Module):
    """Adds a learnt vector to each patch of a view. The vectors start at zero.

    Args:
        count: N, number of patches of a view.
        width: D.
    Source: `pos_embed` of ExternalVisionModel in CogAgent's release; 6400 vectors of width 1024.
    """

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(count, width))

    def forward(self, x: Tensor) -> Tensor:
        """[V, N, D] -> [V, N, D].

        Raises:
            UserError: the views have another number of patches than the table.
        """
        if x.shape[1] != len(self.table):
            raise UserError(
                f"the table of positions has {len(self.table)} vectors, but the second vision encoder makes "
                f"{x.shape[1]} patches of a view. Set the size of its views to `second` of the tiling"
            )
        return x + self.table
