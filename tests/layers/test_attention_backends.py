"""Backends of attention over a flat row: which one computes a call, and what the varlen kernel gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lit_mm.errors import UserError
from lit_mm.language.llama import Llama
from lit_mm.layers.attention import Segments, choice, segment_attention
from lit_mm.layers.attention.choice import Demand, choose, varlen_obstacle
from lit_mm.layers.attention.flat import by_segment
from lit_mm.layers.attention.varlen import varlen_attention
from tests.rows import flat

CUDA = Demand(torch.device("cuda"), torch.bfloat16, 64)


@pytest.fixture
def gpu_of_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU, as far as the choice can see."""
    monkeypatch.setattr(choice, "compute_capability", lambda device: (9, 0))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"dtype": torch.float16}, None),
        ({"head_width": 128}, None),
        ({"dtype": torch.float32}, "bf16 or fp16"),
        ({"device": torch.device("cpu")}, "CUDA device"),
        ({"head_width": 36}, "multiple of 8"),
        ({"head_width": 320}, "at most 256"),
        ({"bias": True}, "bias"),
        ({"dropout": True}, "dropout"),
        ({"softcap": True}, "soft cap"),
    ],
)
def test_auto_takes_varlen_where_it_can_and_forcing_it_elsewhere_is_refused(
    changes: dict, reason: str | None, gpu_of_capability: None
) -> None:
    demand = replace(CUDA, **changes)
    assert choose("segments", demand) == "segments"
    if reason is None:
        assert choose("auto", demand) == choose("varlen", demand) == "varlen"
        return
    assert choose("auto", demand) == "segments"
    with pytest.raises(UserError, match=f"attention: varlen.*{reason}"):
        choose("varlen", demand)


def test_an_old_gpu_and_an_old_torch_have_no_varlen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "compute_capability", lambda device: (7, 5))
    assert "7.5" in varlen_obstacle(CUDA)
    monkeypatch.setattr(choice, "has_varlen", lambda: False)
    assert torch.__version__ in varlen_obstacle(CUDA)


def test_the_reason_for_segments_on_a_gpu_is_logged_once(
    gpu_of_capability: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    monkeypatch.setattr(choice, "rank_zero_info", messages.append)
    choice.log_fallback.cache_clear()
    for _ in range(3):
        choose("auto", replace(CUDA, softcap=True))
        choose("auto", replace(CUDA, device=torch.device("cpu"), softcap=True))  # nobody expects a GPU kernel there
    assert len(messages) == 1
    assert "soft cap" in messages[0]


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize(
    "segments",
    [Segments((3, 0, 5), backend="varlen"), Segments((3, 0, 5), (2, 4, 0), causal=False, backend="varlen")],
    ids=["causal", "cross"],
)
def test_varlen_takes_meta_tensors_forward_and_backward(segments: Segments, kv_heads: int) -> None:
    keys = sum(segments.key_lengths or segments.lengths)
    q, k, v = (
        torch.randn(1, heads, length, 16, dtype=torch.bfloat16, device="meta", requires_grad=True)
        for heads, length in ((4, 8), (kv_heads, keys), (kv_heads, keys))
    )
    out = segment_attention(q, k, v, segments, 0.5)
    out.sum().backward()
    assert out.shape == (1, 8, 4, 16)
    assert [x.grad.shape for x in (q, k, v)] == [x.shape for x in (q, k, v)]


@pytest.mark.parametrize(
    ("segments", "window", "expected"),
    [
        (Segments((3, 0, 5)), None, ((5, 5), (-1, 0))),
        (Segments((3, 0, 5)), 4, ((5, 5), (3, 0))),
        (Segments((3, 5), (2, 6), causal=False), None, ((5, 6), (-1, -1))),
    ],
    ids=["causal", "window", "cross"],
)
def test_varlen_is_called_with_the_lengths_and_the_window(
    segments: Segments, window: int | None, expected: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.nn.attention import varlen

    calls: list[tuple] = []

    def record(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
        calls.append((args, options))
        return q

    monkeypatch.setattr(varlen, "varlen_attn", record)
    q, k, v = (torch.randn(1, heads, 8, 16) for heads in (4, 2, 2))
    out = varlen_attention(q, k, v, segments, 0.5, window)
    assert torch.equal(out, q.transpose(1, 2))
    (starts, key_starts, longest, longest_keys), options = calls[0]
    assert starts.tolist() == torch.tensor([0, *segments.lengths]).cumsum(0).tolist()
    assert starts.dtype == torch.int32
    assert (starts is key_starts) == (segments.key_lengths is None)  # cuDNN's causal kernel asks for the same tensor
    assert ((longest, longest_keys), options.pop("window_size")) == expected
    assert options == {"scale": 0.5, "enable_gqa": True}


def test_the_starts_of_segments_are_made_once_for_all_layers() -> None:
    segments, device = Segments((3, 0, 5)), torch.device("cpu")
    assert segments.starts(device) is segments.starts(device)
    assert segments.starts(device).tolist() == [0, 3, 3, 8]


def test_a_language_model_that_forces_varlen_on_a_cpu_says_why_not() -> None:
    language = Llama(width=16, layers=1, heads=2, kv_heads=1, ffn_width=16, vocab_size=8, attention="varlen")
    batch = flat([torch.tensor([1, 2])])
    with pytest.raises(UserError, match=r"attention: varlen.*CUDA device, got cpu"):
        language.learn(language.embed(batch.ids), batch)


class Strictness(TorchDispatchMode):
    """Records whether the backward of varlen runs while nondeterministic kernels are an error."""

    def __init__(self) -> None:
        super().__init__()
        self.strict: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if "_varlen_attn_backward" in str(func):
            warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
            self.strict.append(torch.are_deterministic_algorithms_enabled() and not warn_only)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_backward_of_varlen_is_deterministic_where_a_run_asks_for_it_with_a_warning(deterministic: bool) -> None:
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    try:
        q = torch.randn(1, 2, 8, 16, dtype=torch.bfloat16, device="meta", requires_grad=True)
        out = segment_attention(q, q, q, Segments((3, 5), backend="varlen"))
        with Strictness() as mode:
            out.sum().backward()
        assert torch.are_deterministic_algorithms_enabled() == deterministic
        assert torch.is_deterministic_algorithms_warn_only_enabled() or not deterministic
    finally:
        torch.use_deterministic_algorithms(False)
    assert mode.strict == [deterministic]


@pytest.mark.gpu
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize(
    ("segments", "window"),
    [
        (Segments((70, 0, 1, 200, 33)), None),
        (Segments((70, 0, 1, 200, 33)), 16),
        (Segments((70, 0, 1, 200, 33), causal=False), None),
        (Segments((70, 0, 1, 200, 33), (5, 9, 1, 0, 145), causal=False), None),
    ],
    ids=["causal", "window", "full", "cross"],
)
def test_varlen_gives_what_the_loop_gives(
    segments: Segments, window: int | None, kv_heads: int, deterministic: bool
) -> None:
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    try:
        keys = sum(segments.key_lengths or segments.lengths)
        inputs = [
            torch.randn(1, heads, length, 64, device="cuda", requires_grad=True)
            for heads, length in ((4, sum(segments.lengths)), (kv_heads, keys), (kv_heads, keys))
        ]
        reference = by_segment(*inputs, segments, window=window)  # in fp32
        weight = torch.randn_like(reference)
        expected = [reference, *torch.autograd.grad((reference * weight).sum(), inputs)]
        with torch.autocast("cuda", torch.bfloat16):
            out = segment_attention(*inputs, replace(segments, backend="varlen"), window=window)
        loss = (out.float() * weight).sum()
        ours = [out.float(), *torch.autograd.grad(loss, inputs, retain_graph=True)]
        again = torch.autograd.grad(loss, inputs)
    finally:
        torch.use_deterministic_algorithms(False)
    for result, exact in zip(ours, expected, strict=True):
        assert (result - exact).abs().max() <= 0.02 * exact.abs().max()  # bf16 has 8 bits
    if deterministic:
        assert all(torch.equal(*pair) for pair in zip(again, ours[1:], strict=True))
