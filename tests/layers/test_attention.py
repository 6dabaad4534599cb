"""Attention by whichever kernel is fastest: all of them compute the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lit_mm.layers.attention import attention


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("masked", [True, False])
def test_the_bf16_kernel_of_a_cpu_agrees_with_torch(kv_heads: int, masked: bool) -> None:
    q = torch.randn(2, 4, 9, 8, requires_grad=True)
    k, v = (torch.randn(2, kv_heads, 9, 8, requires_grad=True) for _ in range(2))
    mask = torch.ones(9, 9).tril().bool().expand(2, 1, 9, 9) if masked else None
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    weight = torch.randn_like(expected)
    gradients = torch.autograd.grad((expected * weight).sum(), (q, k, v))
    with torch.autocast("cpu", torch.bfloat16):
        ours = attention(q, k, v, mask)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), expected, rtol=0, atol=0.03)  # bf16 has 8 bits
    for got, wanted in zip(torch.autograd.grad((ours.float() * weight).sum(), (q, k, v)), gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0.08)


def test_what_is_masked_has_no_influence_in_bf16() -> None:
    q, k, v = (torch.randn(1, 2, 5, 8, dtype=torch.bfloat16) for _ in range(3))
    mask = torch.ones(5, 5).tril().bool()[None, None]
    before = attention(q, k, v, mask)
    k[:, :, 3:], v[:, :, 3:] = 100.0, -100.0
    assert torch.equal(attention(q, k, v, mask)[:, :, :3], before[:, :, :3])


def test_a_scale_is_used_in_both_kernels() -> None:
    q, k, v = (torch.randn(1, 2, 5, 8) for _ in range(3))
    exact = attention(q, k, v, scale=0.7)
    torch.testing.assert_close(exact, F.scaled_dot_product_attention(q, k, v, scale=0.7))
    halved = attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), scale=0.7)
    torch.testing.assert_close(halved.float(), exact, rtol=0, atol=0.03)
