"""The MLP projector."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lit_mm.connectors.mlp import MLPProjector
from lit_mm.errors import UserError


def test_it_is_linear_exact_gelu_linear() -> None:
    projector, x = MLPProjector(6, 10), torch.randn(2, 4, 6)
    first, second = projector.mlp[0], projector.mlp[2]
    expected = F.gelu(x @ first.weight.T + first.bias) @ second.weight.T + second.bias
    torch.testing.assert_close(projector(x), expected, rtol=0, atol=1e-6)


def test_it_keeps_the_grid_and_learns_no_vectors() -> None:
    projector = MLPProjector(6, 10)
    assert projector.token_grid((3, 5)) == (3, 5)
    assert projector.learned().shape == (0, 10)


def test_every_parameter_gets_a_gradient() -> None:
    projector = MLPProjector(6, 10, depth=3)
    projector(torch.randn(2, 4, 6)).square().sum().backward()
    assert len(list(projector.parameters())) == 6
    assert all(p.grad.any() for p in projector.parameters())


def test_it_has_the_published_parameter_count() -> None:
    with torch.device("meta"):
        projector = MLPProjector(1024, 4096)
    assert sum(p.numel() for p in projector.parameters()) == 20_979_712


def test_no_linear_at_all_is_refused() -> None:
    with pytest.raises(UserError, match="depth"):
        MLPProjector(6, 10, depth=0)
