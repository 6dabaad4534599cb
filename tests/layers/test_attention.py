"""Attention by whichever kernel is fastest: all of them compute the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lit_mm.layers.attention import Segments, attention, segment_attention


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


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_segment_by_segment_is_attention_under_their_mask(kv_heads: int, dtype: torch.dtype) -> None:
    lengths = (3, 2, 4, 1, 7)
    segments = torch.repeat_interleave(torch.arange(5), torch.tensor(lengths))
    mask = (segments[:, None] == segments).tril()[None, None]
    q = torch.randn(1, 4, 17, 8, dtype=dtype, requires_grad=True)
    k, v = (torch.randn(1, kv_heads, 17, 8, dtype=dtype, requires_grad=True) for _ in range(2))
    weight = torch.randn(1, 4, 17, 8)
    results = []
    for out in (attention(q, k, v, mask), segment_attention(q, k, v, Segments(lengths)).transpose(1, 2)):
        gradients = torch.autograd.grad((out.float() * weight).sum(), (q, k, v))
        results.append([out.float(), *(gradient.float() for gradient in gradients)])
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance)


def test_a_sample_attends_to_the_same_bits_in_every_row() -> None:
    q, k, v = (torch.randn(1, 2, 20, 8) for _ in range(3))
    alone = segment_attention(q[:, :, 5:12], k[:, :, 5:12], v[:, :, 5:12], Segments([7]))
    packed = segment_attention(q, k, v, Segments([5, 7, 8]))
    assert torch.equal(packed[:, 5:12], alone)
