"""Where fresh weights start."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lit_mm.layers.start import start_at, start_resampler


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_starts_at_the_scale_of_its_outputs(bias: bool) -> None:
    linear = nn.Linear(300, 200, bias=bias)
    start_at(linear, 0.3)
    assert linear(torch.randn(100, 300)).std().item() == pytest.approx(0.3, rel=0.05)
    assert linear.bias is None or not linear.bias.any()


def test_a_resampler_starts_as_wide_as_the_releases() -> None:
    query, out, read = nn.Parameter(torch.empty(50, 90)), nn.Linear(90, 90), tuple(nn.Linear(90, 90) for _ in range(3))
    for kv_proj in (nn.Identity(), nn.Linear(60, 90, bias=False)):
        start_resampler(query, kv_proj, read, out)
        for drawn in (query, out.weight, *(parameter for parameter in kv_proj.parameters())):
            assert drawn.std().item() == pytest.approx(0.02, rel=0.05)
        limit = (6 / (90 + 3 * 90)) ** 0.5  # xavier of one matrix of [3 E, E]
        for linear in read:
            assert 0.99 * limit < linear.weight.abs().max().item() <= limit
        assert not any(linear.bias.any() for linear in (*read, out))
