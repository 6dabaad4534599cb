"""Backends of attention over a flat row: which one computes a call, and what the varlen kernel gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from lit_mm.errors import UserError
from lit_mm.language.llama import Llama
from lit_mm.layers.attention import Segments, choice, segment_attention
from lit_mm.layers.attention.choice import Demand, choose, varlen_obstacle
from lit_mm.layers.attention.flat import by_segment
from lit_mm.layers.attention.segments import starts_of
from lit_mm.layers.attention.varlen import varlen_attention
from tests.rows import flat

META = torch.device("meta")
CUDA = Demand(torch.device("cuda"), torch.bfloat16, 64)


@pytest.fixture
def gpu_of_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU, as far as the choice can see."""
    monkeypatch.setattr(choice, "compute_capability", lambda index: (9, 0))


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
    monkeypatch.setattr(choice, "compute_capability", lambda index: (7, 5))
    assert "7.5" in varlen_obstacle(CUDA)
    monkeypatch.setattr(choice, "HAS_VARLEN", False)
    assert torch.__version__ in varlen_obstacle(CUDA)


def test_the_reason_for_segments_on_a_gpu_is_logged_once(
    gpu_of_capability: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    monkeypatch.setattr(choice, "rank_zero_info", messages.append)
    choice.logged_obstacles.clear()
    for _ in range(3):
        choose("auto", replace(CUDA, softcap=True))
        choose("auto", replace(CUDA, device=torch.device("cpu"), softcap=True))  # nobody expects a GPU kernel there
    assert len(messages) == 1
    assert "soft cap" in messages[0]


@pytest.mark.parametrize("softcap", [False, True])
def test_the_choice_is_made_while_a_compiled_layer_is_traced(softcap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))

    @torch.compile(fullgraph=True, backend="eager")
    def layer(x: torch.Tensor) -> torch.Tensor:
        demand = Demand(torch.device("cuda", 0), torch.bfloat16, 64, softcap=softcap)
        return x + (choose("auto", demand) == "varlen")

    torch._dynamo.reset()
    assert layer(torch.zeros(1)).item() == (not softcap)


@pytest.mark.parametrize("deterministic", [False, True])
def test_compiled_layers_are_one_graph_for_all_numbers_and_lengths_of_segments(deterministic: bool) -> None:
    with torch.device("meta"):
        language = Llama(
            width=32, layers=2, heads=4, kv_heads=2, ffn_width=48, vocab_size=40, attention="varlen"
        ).bfloat16()
    counter = CompileCounter()
    torch._dynamo.reset()
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    try:
        for layer in language.decoder_layers:
            layer.compile(fullgraph=True, dynamic=True, backend=counter)
        for lengths in ((5, 3), (6, 3), (7, 9), (4, 4, 4), (8, 2, 1), (1,) * 9):
            batch = flat([torch.zeros(length, dtype=torch.long) for length in lengths]).to("meta")
            language.learn(language.embed(batch.ids), batch).hidden.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert counter.frame_count <= 2  # the second has dynamic lengths


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize(
    "segments",
    [
        Segments((3, 0, 5), backend="varlen", device=META),
        Segments((3, 0, 5), (2, 4, 0), causal=False, backend="varlen", device=META),
    ],
    ids=["causal", "cross"],
)
def test_varlen_takes_meta_tensors_forward_and_backward(segments: Segments, kv_heads: int) -> None:
    keys = sum(segments.key_lengths)
    q, k, v = (
        torch.randn(1, heads, length, 16, dtype=torch.bfloat16, device="meta", requires_grad=True)
        for heads, length in ((4, 8), (kv_heads, keys), (kv_heads, keys))
    )
    out = segment_attention(q, k, v, segments, 0.5)
    out.sum().backward()
    assert out.shape == (1, 8, 4, 16)
    assert [x.grad.shape for x in (q, k, v)] == [x.shape for x in (q, k, v)]


@pytest.mark.parametrize(
    ("lengths", "key_lengths", "window", "starts", "longest", "window_size"),
    [
        ((3, 0, 5), None, None, ([0, 3, 3, 8], [0, 3, 3, 8]), (5, 5), (-1, 0)),
        ((3, 0, 5), None, 4, ([0, 3, 3, 8], [0, 3, 3, 8]), (5, 5), (3, 0)),
        ((3, 5), (2, 6), None, ([0, 3, 8], [0, 2, 8]), (5, 6), (-1, -1)),
    ],
    ids=["causal", "window", "cross"],
)
def test_varlen_is_called_with_the_lengths_and_the_window(
    lengths: tuple[int, ...],
    key_lengths: tuple[int, ...] | None,
    window: int | None,
    starts: tuple[list[int], list[int]],
    longest: tuple[int, int],
    window_size: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch.nn.attention import varlen

    calls: list[tuple] = []

    def record(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
        calls.append((args, options))
        return q

    monkeypatch.setattr(varlen, "varlen_attn", record)
    q, k, v = (torch.randn(1, heads, 8, 16) for heads in (4, 2, 2))
    segments = Segments(lengths, key_lengths, causal=key_lengths is None, device=META)
    assert torch.equal(varlen_attention(q, k, v, segments, 0.5, window), q.transpose(1, 2))
    (first, first_key, *counts), options = calls[0]
    assert (first is first_key) == (key_lengths is None)
    assert (first.shape, first_key.shape) == tuple((len(of),) for of in starts)
    assert tuple(counts) == longest
    assert options == {"scale": 0.5, "enable_gqa": True, "window_size": window_size}
    for of, expected in zip((lengths, key_lengths or lengths), starts, strict=True):
        assert starts_of(of, torch.device("cpu")).tolist() == expected


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
        out = segment_attention(q, q, q, Segments((3, 5), backend="varlen", device=META))
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
    ("lengths", "key_lengths", "causal", "window"),
    [
        ((70, 0, 1, 200, 33), None, True, None),
        ((70, 0, 1, 200, 33), None, True, 16),
        ((70, 0, 1, 200, 33), None, False, None),
        ((70, 0, 1, 200, 33), (5, 9, 1, 0, 145), False, None),
    ],
    ids=["causal", "window", "full", "cross"],
)
def test_varlen_gives_what_the_loop_gives(
    lengths: tuple[int, ...],
    key_lengths: tuple[int, ...] | None,
    causal: bool,
    window: int | None,
    kv_heads: int,
    deterministic: bool,
) -> None:
    segments = Segments(lengths, key_lengths, causal=causal, backend="varlen", device=torch.device("cuda"))
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    try:
        keys = sum(segments.key_lengths)
        inputs = [
            torch.randn(1, heads, length, 64, device="cuda", requires_grad=True)
            for heads, length in ((4, sum(segments.lengths)), (kv_heads, keys), (kv_heads, keys))
        ]
        reference = by_segment(*inputs, segments, window=window)  # in fp32
        weight = torch.randn_like(reference)
        expected = [reference, *torch.autograd.grad((reference * weight).sum(), inputs)]
        with torch.autocast("cuda", torch.bfloat16):
            out = segment_attention(*inputs, segments, window=window)
        loss = (out.float() * weight).sum()
        ours = [out.float(), *torch.autograd.grad(loss, inputs, retain_graph=True)]
        again = torch.autograd.grad(loss, inputs)
    finally:
        torch.use_deterministic_algorithms(False)
    for result, exact in zip(ours, expected, strict=True):
        assert (result - exact).abs().max() <= 0.02 * exact.abs().max()  # bf16 has 8 bits
    if deterministic:
        assert all(torch.equal(*pair) for pair in zip(again, ours[1:], strict=True))
