"""The linear projector of LLaVA, which VILA's paper uses too."""

from __future__ import annotations

from lit_mm.connectors.mlp import MLPProjector


def linear_projector(vision_width: int, language_width: int) -> MLPProjector:
    """Build one linear with bias and without activation. Source: arXiv:2304.08485, equation 1.

    Args:
        vision_width: width of the input.
        language_width: width of the output.
    """
    return MLPProjector(vision_width, language_width, depth=1)
