"""Dropout drops the requested share and depends only on torch's seed."""

from __future__ import annotations

import pytest
import torch

from lit_mm.layers.dropout import dropout


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_a_share_p_is_dropped_and_the_mean_is_kept(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(1001, 999)
    y = dropout(x, p)
    assert abs((y == 0).double().mean().item() - p) < 5 * (p * (1 - p) / x.numel()) ** 0.5  # five standard deviations
    assert y.unique().numel() == 2
    assert y.max().item() == pytest.approx(1 / (1 - p), rel=1e-3)
    assert y.double().mean().item() == pytest.approx(1, abs=0.02)


def test_rows_columns_and_neighbours_are_dropped_independently() -> None:
    """Four neighbours share one draw of 64 bits."""
    torch.manual_seed(0)
    kept = (dropout(torch.ones(40_000, 4), 0.5) != 0).double()
    correlation = torch.corrcoef(kept.T) - torch.eye(4)
    assert correlation.abs().max() < 0.025  # five standard deviations


def test_it_is_drawn_from_the_seed() -> None:
    x = torch.randn(7, 33)
    torch.manual_seed(3)
    first, second = dropout(x, 0.3), dropout(x, 0.3)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.3), first)
    assert not torch.equal(first, second)


def test_gradients_follow_the_mask() -> None:
    x = torch.randn(50, 20, requires_grad=True)
    y = dropout(x, 0.25)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient * x, y)


def test_nothing_is_dropped_outside_training_or_with_p_0() -> None:
    x = torch.randn(5, 5)
    assert torch.equal(dropout(x, 0.5, training=False), x)
    assert torch.equal(dropout(x, 0.0), x)
    assert dropout(x[:0], 0.5).shape == (0, 5)


def test_half_precision_stays_half_precision() -> None:
    assert dropout(torch.randn(5, 5, dtype=torch.bfloat16), 0.5).dtype == torch.bfloat16
