"""All attention kernels compute the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from lit_mm.errors import UserError
from lit_mm.layers.attention import Segments, attention, attention_by_length, segment_attention
from lit_mm.layers.attention.interface import transformers_attention

LENGTHS = (3, 2, 4, 1, 7)
ROW = sum(LENGTHS)


def textbook(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, softcap: float | None = None) -> Tensor:
    """Attention with every score written out. `mask` is boolean, or added to the scores."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1) @ v


def operands(length: int = ROW, keys: int | None = None, kv_heads: int = 4, batch: int = 1) -> list[Tensor]:
    shapes = [(batch, 4, length, 8), *[(batch, kv_heads, keys or length, 8)] * 2]
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def with_gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The result of a function and the gradients of its inputs, weighted alike in every call, in fp32."""
    out = function(*inputs).float()
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return [out, *(g.float() for g in torch.autograd.grad((out * weight).sum(), inputs))]


def assert_close(ours: Sequence[Tensor], expected: Sequence[Tensor], atol: float = 1e-5) -> None:
    for result, reference in zip(ours, expected, strict=True):
        torch.testing.assert_close(result, reference, rtol=0, atol=atol)


def blocks(lengths: Sequence[int], key_lengths: Sequence[int] | None = None) -> Tensor:
    """[T, S] True where query and key are of the same segment."""
    queries, keys = (
        torch.repeat_interleave(torch.arange(len(of)), torch.tensor(of)) for of in (lengths, key_lengths or lengths)
    )
    return queries[:, None] == keys


# --- equally long rows -----------------------------------------------------------------------------------------------
MASKS = {
    "none": None,
    "boolean": torch.ones(9, 9).tril().bool().expand(2, 1, 9, 9),
    "by head": torch.ones(4, 9, 9).tril(2).bool()[None],
    "added": torch.linspace(-2, 2, 4 * 81).view(1, 4, 9, 9),
}


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("softcap", [None, 0.5])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_the_textbook(
    dtype: torch.dtype, mask: Tensor | None, softcap: float | None, kv_heads: int
) -> None:
    inputs = operands(9, kv_heads=kv_heads, batch=2)
    plain = torch.ones(9, 9, dtype=torch.bool) if mask is None else mask
    expected = with_gradients(lambda q, k, v: textbook(q, k, v, plain, 0.7, softcap), inputs)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        ours = with_gradients(lambda q, k, v: attention(q, k, v, mask, 0.7, softcap=softcap), inputs)
    assert_close(ours, expected, 1e-5 if dtype == torch.float32 else 0.1)  # bf16 has 8 bits; measured 0.05


@pytest.mark.parametrize("softcap", [None, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_added_mask_gets_its_gradient(dtype: torch.dtype, softcap: float | None) -> None:
    inputs = [*operands(9, kv_heads=2, batch=2), torch.randn(1, 4, 9, 9, requires_grad=True)]
    expected = with_gradients(lambda q, k, v, mask: textbook(q, k, v, mask, 0.7, softcap), inputs)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        ours = with_gradients(lambda q, k, v, mask: attention(q, k, v, mask, 0.7, softcap=softcap), inputs)
    assert_close(ours, expected, 1e-5 if dtype == torch.float32 else 0.1)


def test_what_is_masked_has_no_influence_in_bf16() -> None:
    q, k, v = (torch.randn(1, 2, 5, 8, dtype=torch.bfloat16) for _ in range(3))
    mask = torch.ones(5, 5).tril().bool()[None, None]
    before = attention(q, k, v, mask)
    k[:, :, 3:], v[:, :, 3:] = 100.0, -100.0
    assert torch.equal(attention(q, k, v, mask)[:, :, :3], before[:, :, :3])


def test_one_new_token_over_shared_keys_is_attention_of_every_head() -> None:
    q, k, v = operands(1, keys=6, kv_heads=2, batch=3)
    mask = torch.ones(3, 1, 1, 6, dtype=torch.bool)
    mask[1, ..., :4] = False
    torch.testing.assert_close(attention(q, k, v, mask), textbook(q, k, v, mask, 8**-0.5))


@pytest.mark.parametrize("softcap", [None, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_zeroes_weights_and_scales_the_rest(dtype: torch.dtype, softcap: float | None) -> None:
    q, k = (torch.zeros(1, 1, 500, 8, dtype=dtype) for _ in range(2))
    v = torch.eye(500, dtype=dtype)[None, None]
    weights = attention(q, k, v, dropout=0.25, softcap=softcap).float() * 500
    zero, other = weights.unique().tolist()
    assert (zero, other) == (0.0, pytest.approx(4 / 3, rel=0.01))
    assert (weights == 0).float().mean() == pytest.approx(0.25, abs=0.01)


def test_in_bf16_no_weights_are_kept_for_the_backward_pass() -> None:
    """A softmax of 64 x 64 would be 4 heads x 4096 elements."""
    largest = 0

    def record(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    q, k, v = (x.bfloat16() for x in operands(64))
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        segment_attention(q, k, v, Segments((64,)))
    assert largest == 4 * 64 * 8


# --- rows padded at their ends ---------------------------------------------------------------------------------------
def test_rows_of_unequal_length_read_their_own_keys_and_padding_reads_zero() -> None:
    q, k, v = operands(6, batch=4)
    lengths = (6, 3, 3, 5)
    visible = torch.arange(6) < torch.tensor(lengths)[:, None]
    expected = textbook(q, k, v, visible[:, None, None], 8**-0.5) * visible[:, None, :, None]
    torch.testing.assert_close(attention_by_length(q, k, v, lengths, lengths), expected)
    keys_alone = textbook(q, k, v, visible[:, None, None], 8**-0.5)
    torch.testing.assert_close(attention_by_length(q, k, v, lengths), keys_alone)
    assert torch.equal(attention_by_length(q, k, v, None), attention(q, k, v))


# --- segments of a flat row ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("softcap", [None, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_segment_by_segment_is_attention_under_their_mask(
    dtype: torch.dtype, softcap: float | None, window: int | None, kv_heads: int
) -> None:
    mask = blocks(LENGTHS).tril()
    mask = mask if window is None else mask.triu(1 - window)
    inputs = operands(kv_heads=kv_heads)
    expected = with_gradients(lambda q, k, v: textbook(q, k, v, mask, 0.7, softcap).transpose(1, 2), inputs)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        ours = with_gradients(
            lambda q, k, v: segment_attention(q, k, v, Segments(LENGTHS), 0.7, softcap=softcap, window=window), inputs
        )
    assert_close(ours, expected, 1e-5 if dtype == torch.float32 else 0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_full_segments_read_keys_of_another_row_and_segments_without_keys_read_zero(dtype: torch.dtype) -> None:
    lengths, key_lengths = (3, 0, 4, 2), (5, 2, 0, 1)
    q, k, v = operands(9, keys=8)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = segment_attention(q, k, v, Segments(lengths, key_lengths, causal=False))
    visible = blocks(lengths, key_lengths)
    expected = textbook(q, k, v, visible, 8**-0.5).nan_to_num(0.0).transpose(1, 2)
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.03)
    assert not out[:, 3:7].any()
    out.sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in (q, k, v))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bias_by_distance_is_added_inside_each_segment(dtype: torch.dtype, causal: bool) -> None:
    bias = torch.randn(4, 2 * 8 + 1, requires_grad=True)  # distances -8 to 8; the longest segment has 7
    position = torch.arange(ROW)
    distances = (position - position[:, None]).clamp(-8, 8) + 8
    visible = blocks(LENGTHS).tril() if causal else blocks(LENGTHS)

    def reference(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        mask = bias[:, distances].masked_fill(~visible, float("-inf"))
        return textbook(q, k, v, mask, 1.0).transpose(1, 2)

    def by_segment(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return segment_attention(q, k, v, Segments(LENGTHS, causal=causal), 1.0, distance_bias=bias)

    inputs = [*operands(), bias]
    expected = with_gradients(reference, inputs)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        ours = with_gradients(by_segment, inputs)
    assert_close(ours, expected, 1e-5 if dtype == torch.float32 else 0.1)


def test_a_sample_attends_to_the_same_bits_in_every_row() -> None:
    q, k, v = (torch.randn(1, 2, 20, 8) for _ in range(3))
    alone = segment_attention(q[:, :, 5:12], k[:, :, 5:12], v[:, :, 5:12], Segments([7]))
    packed = segment_attention(q, k, v, Segments([5, 7, 8]))
    assert torch.equal(packed[:, 5:12], alone)


# --- behind transformers' interface ----------------------------------------------------------------------------------
def test_a_window_of_cached_decoding_ends_at_the_newest_key() -> None:
    q, k, v = operands(1, keys=6, batch=2)
    mask = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    out, _ = transformers_attention(nn.Identity(), q, k, v, mask, sliding_window=4)
    mask[..., :2] = False
    torch.testing.assert_close(out, textbook(q, k, v, mask, 8**-0.5).transpose(1, 2))


def test_several_positions_without_lengths_or_a_mask_are_refused() -> None:
    with pytest.raises(UserError, match="segments"):
        transformers_attention(nn.Identity(), *operands(), None)


@pytest.mark.parametrize(("dtype", "kernel"), [(torch.float32, "flash"), (torch.bfloat16, "bmm")])
def test_fp32_takes_the_flash_kernel_and_bf16_on_a_cpu_products(dtype: torch.dtype, kernel: str) -> None:
    q, k, v = (x.to(dtype) for x in operands(kv_heads=2))
    with torch.profiler.profile() as profile:
        segment_attention(q, k, v, Segments(LENGTHS))
    assert any(kernel in event.key for event in profile.key_averages())


@pytest.mark.parametrize("causal", [True, False])
def test_on_a_cpu_shared_keys_give_the_bits_of_keys_that_are_copies(causal: bool) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, 64, 32, requires_grad=True) for heads in (6, 2, 2))

    def of_copies(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, *(x.repeat_interleave(3, dim=1) for x in (k, v)), causal=causal)

    shared = with_gradients(lambda *inputs: attention(*inputs, causal=causal), (q, k, v))
    assert all(torch.equal(*pair) for pair in zip(shared, with_gradients(of_copies, (q, k, v)), strict=True))
