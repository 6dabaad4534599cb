"""The projector of MiniGPT-4 with LLaMA-2, which has no Q-Former: neighbouring patches become one visual token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_mm.connectors.protocol import Connector
from lit_mm.errors import UserError
from lit_mm.layers.start import start_at
from lit_mm.tiling.grids import GroupedGrid


# V views, N patches, D vision width, G patches of a group, E language width
class GroupedProjector(nn.Module, Connector):
    """Brings features to mean 0 and variance 1, concatenates G patches that are neighbours in a row, and projects them.

    Example with G = 4: 16 x 16 patches of width 1408 become 64 visual tokens, each from 5632 channels. The linear is
    the part "projection"; there are no other parameters.

    Args:
        vision_width: D.
        language_width: E.
        group: G.
        norm_eps: epsilon of the norm of the features.
        start: standard deviation of the visual tokens at the start; None: torch's initial weights, as in the release.
    Raises:
        UserError: the group is below 1.
    Source: `encode_img` of minigpt4/models/minigpt4.py, github.com/Vision-CAIR/MiniGPT-4 d94738a, with `has_qformer:
        False`. Its norm has weights, but they are frozen, and no checkpoint fills them: they stay 1 and 0.
    """

    def __init__(
        self,
        vision_width: int,
        language_width: int,
        group: int = 4,
        norm_eps: float = 1e-5,
        start: float | None = None,
    ) -> None:
        super().__init__()
        if group < 1:
            raise UserError(f"GroupedProjector: `group` is a number of patches, at least 1, got {group}")
        self.vision_width, self.language_width, self.group, self.norm_eps = (
            vision_width,
            language_width,
            group,
            norm_eps,
        )
        self.grid_rule = GroupedGrid(group, "GroupedProjector")
        self.projection = nn.Linear(group * vision_width, language_width)
        self.parts_within = {"projection": "projection"}
        if start is not None:
            start_at(self.projection, start)

    def token_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of patches -> (rows, columns / G) of visual tokens.

        Raises:
            UserError: G does not divide the columns.
        """
        return self.grid_rule(grid)

    def learned(self) -> Tensor:
        """[0, E]: no newline, no separator."""
        return torch.zeros(0, self.language_width)

    def forward(self, x: Tensor) -> Tensor:
        """[V, N, D] patch features -> [V, N / G, E] visual tokens, row-major.

        Raises:
            UserError: G does not divide N.
        """
        if x.shape[1] % self.group:
            raise UserError(
                f"GroupedProjector(group={self.group}) needs a number of patches that {self.group} divides, got "
                f"{x.shape[1]}. Did the vision encoder keep its class token? Set `drop_cls: true`"
            )
        features = F.layer_norm(x, (self.vision_width,), eps=self.norm_eps)
        return self.projection(features.unflatten(1, (-1, self.group)).flatten(2))  # [V, N / G, G * D]
