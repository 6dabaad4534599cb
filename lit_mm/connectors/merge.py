"""XComposer2-4KHD's projector: 2 x 2 patches become one visual token. It has a newline and a separator vector."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_mm.connectors.protocol import Connector
from lit_mm.errors import UserError
from lit_mm.layers.start import start_at
from lit_mm.tiling.grids import MergedGrid


# V views, N patches, D vision width, S merge side, M = N / S^2 tokens, E language width
class MergeMLP(nn.Module, Connector):
    """Folds each S x S block of patches into channels, then linear - exact GELU - linear.

    The newline and the separator vector have the width of a folded block and pass through the same projector. Both
    start at zero, as in the released code (the paper says at random).

    Args:
        vision_width: D.
        language_width: E.
        merge: S.
        standardise: True brings every feature vector to mean 0 and variance 1 first, see `MLPProjector`. The two
            learned vectors are not standardised.
        start: standard deviation of the visual tokens at the start, see `MLPProjector`; None: torch's initial weights.
    Raises:
        UserError: the merge is below 1.
    Source: arXiv:2404.06512, section 3.2; build_mlp.py of the 4khd checkpoint (`plora_sub_GN`, `plora_glb_GN`).
    """

    grids = "square"  # see lit_mm.combination.legal

    def __init__(
        self,
        vision_width: int,
        language_width: int,
        merge: int = 2,
        standardise: bool = False,
        start: float | None = None,
    ) -> None:
        super().__init__()
        if merge < 1:
            raise UserError(f"MergeMLP: `merge` is the side of a block, in patches, at least 1, got {merge}")
        self.vision_width, self.language_width, self.merge = vision_width, language_width, merge
        self.grid_rule = MergedGrid(merge, "MergeMLP")
        self.standardise = standardise
        width = merge**2 * vision_width
        self.newline = nn.Parameter(torch.zeros(width))
        self.separator = nn.Parameter(torch.zeros(width))
        self.mlp = nn.Sequential(nn.Linear(width, language_width), nn.GELU(), nn.Linear(language_width, language_width))
        if start is not None:
            start_at(self.mlp[2], start)

    def token_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of patches -> (rows, columns) of visual tokens.

        Raises:
            UserError: S does not divide a side.
        """
        return self.grid_rule(grid)

    def learned(self) -> Tensor:
        """[2, E]: newline, separator."""
        return self.mlp(torch.stack([self.newline, self.separator]))

    def forward(self, x: Tensor) -> Tensor:
        """[V, N, D] patch features -> [V, M, E] visual tokens, row-major.

        Raises:
            UserError: the patches are not a square grid that S divides.
        """
        return self.mlp(merge_patches(F.layer_norm(x, (self.vision_width,)) if self.standardise else x, self.merge))


def merge_patches(x: Tensor, merge: int) -> Tensor:
    """[V, N, D] -> [V, M, S * S * D]: concatenate the patches of each block, row by row.

    Raises:
        UserError: N is not a square whose side S divides.
    """
    side = math.isqrt(x.shape[1])
    if side**2 != x.shape[1] or side % merge:
        raise UserError(
            f"MergeMLP(merge={merge}) needs a square grid of patches that {merge} divides, got {x.shape[1]} patches. "
            "Did the vision encoder keep its class token? Set `drop_cls: true`"
        )
    x = x.unflatten(1, (side // merge, merge, side // merge, merge))  # [V, row, S, column, S, D]
    return x.transpose(2, 3).flatten(3).flatten(1, 2)  # [V, row, column, S * S * D] -> [V, M, S * S * D]
