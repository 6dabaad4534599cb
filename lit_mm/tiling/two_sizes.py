"""The tiling of models with two vision encoders that see the whole image at two sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lit_mm.tiling.plan import TilePlan, Tiling, View, plan_square


@dataclass(frozen=True)
class TwoSizes(Tiling):
    """Gives each of two vision encoders one square view of the whole image, whose aspect ratio is not kept.

    Args:
        size: side of the view of the first encoder, pixels.
        second: side of the view of the second encoder, pixels.
    Source: CogAgent (arXiv:2312.08914), section 2: 224 and 1120 pixels.
    """

    size: int
    second: int

    def __call__(self, height: int, width: int) -> TilePlan:
        plan = plan_square(height, width, size=self.size)
        return replace(plan, second=(View.whole((self.second, self.second)),))
