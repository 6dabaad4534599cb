"""A single linear projection: LLaVA's connector, and that of VILA's paper."""

from __future__ import annotations

from lit_mm.connectors.mlp import MLPProjector


def linear_projector(vision_width: int, language_width: int) -> MLPProjector:
    """One linear with bias, no activation. Source: arXiv:2304.08485, equation 1.

    Args:
        vision_width, language_width: of its input and output.
    """
    return MLPProjector(vision_width, language_width, depth=1)
