"""The output of a vision encoder with two resolutions, which connectors read."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class TwoMaps(NamedTuple):
    """Features of the same regions at two resolutions. V views, R regions of a view, N patches of a region.

    Attributes:
        low: [V, R, N, D] patch features of square regions, row-major.
        high: [V, R, S, S, D'] cells of a finer map of the same regions; S is a multiple of the side of N.
    """

    low: Tensor
    high: Tensor
