"""VILA-1.5's projector. The order of patches is tested in tests/parity."""

from __future__ import annotations

import pytest
import torch

from lit_mm.connectors.downsample import DownsampleMLP, join_patches
from lit_mm.errors import UserError


@pytest.mark.parametrize(("side", "tokens"), [(2, 1), (3, 4), (8, 16), (27, 196)])
def test_it_makes_as_many_tokens_as_it_promises(side: int, tokens: int) -> None:
    connector = DownsampleMLP(6, 10)
    rows, columns = connector.token_grid((side, side))
    assert connector(torch.randn(2, side**2, 6)).shape == (2, rows * columns, 10) == (2, tokens, 10)
    assert connector.learned().shape == (0, 10)


def test_channels_of_a_patch_stay_together() -> None:
    x = torch.arange(8.0).view(1, 4, 2)  # 2 x 2 patches of 2 channels
    assert join_patches(x).tolist() == [[[0, 1, 2, 3, 4, 5, 6, 7]]]


def test_every_parameter_and_every_patch_gets_a_gradient() -> None:
    connector, x = DownsampleMLP(6, 10), torch.randn(1, 9, 6, requires_grad=True)
    connector(x).square().sum().backward()
    assert all(p.grad.any() for p in connector.parameters())
    assert x.grad.abs().sum(-1).all()


def test_a_grid_that_is_no_square_is_refused() -> None:
    with pytest.raises(UserError, match=r"square grid of patches, got 10\. .*drop_cls"):
        DownsampleMLP(6, 10)(torch.zeros(1, 10, 6))
