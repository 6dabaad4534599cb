"""MLP projector: keeps the number of tokens, changes their width."""

from __future__ import annotations

from torch import Tensor, nn

from lit_mm.errors import UserError


# V views, N patches, D vision width, E language width
class MLPProjector(nn.Module):
    """Linear - exact GELU - Linear, biases on. Source: XComposer2's build_mlp.py, LLaVA-1.5 (arXiv:2310.03744).

    Args:
        vision_width: D.
        language_width: E.
        depth: linears; 1 is LLaVA's single projection.
    Raises:
        UserError: no linear at all.
    """

    def __init__(self, vision_width: int, language_width: int, depth: int = 2) -> None:
        super().__init__()
        if depth < 1:
            raise UserError(f"MLPProjector: `depth` counts its linears and is at least 1, got {depth}")
        self.vision_width, self.language_width = vision_width, language_width
        layers: list[nn.Module] = [nn.Linear(vision_width, language_width)]
        for _ in range(depth - 1):
            layers += [nn.GELU(), nn.Linear(language_width, language_width)]
        self.mlp = nn.Sequential(*layers)

    def token_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of patches -> the same of visual tokens."""
        return grid

    def learned(self) -> Tensor:
        """[0, E]: no newline, no separator."""
        return self.mlp[0].weight.new_zeros(0, self.language_width)

    def forward(self, x: Tensor) -> Tensor:
        """[V, N, D] patch features -> [V, N, E] visual tokens."""
        return self.mlp(x)
