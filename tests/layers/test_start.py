"""Initial weights of parts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lit_mm.errors import UserError
from lit_mm.layers.start import start_at, start_local, start_resampler


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


def test_a_local_resampler_hands_on_all_that_it_sees_and_the_released_start_does_not() -> None:
    """It compares largest and smallest singular values of the matrices from features to the attention's output."""
    query, out, read = nn.Parameter(torch.empty(16, 96)), nn.Linear(96, 96), tuple(nn.Linear(96, 96) for _ in range(3))
    kv_proj = nn.Linear(60, 96, bias=False)
    start_resampler(query, kv_proj, read, out)

    @torch.no_grad()
    def spread() -> float:
        values = torch.linalg.svdvals(out.weight @ read[2].weight @ kv_proj.weight)
        return float(values[0] / values[-2])  # the mean over channels is taken out: one direction may be lost

    assert spread() > 10
    start_local(query, kv_proj, read, out, heads=4, sharpness=4.0)
    assert spread() < 1.2


def test_a_single_head_is_refused() -> None:
    query, out, read = nn.Parameter(torch.empty(16, 96)), nn.Linear(96, 96), tuple(nn.Linear(96, 96) for _ in range(3))
    with pytest.raises(UserError, match="no channels left for content"):
        start_local(query, nn.Identity(), read, out, heads=1, sharpness=4.0)
