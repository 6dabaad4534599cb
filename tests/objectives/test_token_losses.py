"""The loss in chunks: the values and gradients of the plain one, at a fraction of its memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from lit_mm.objectives import token_losses as chunks
from lit_mm.objectives.token_losses import chunk_rows, token_losses


class Projection(nn.Module):
    """The end of a language model: a linear to the vocabulary."""

    def __init__(self, width: int, vocab_size: int, bias: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vocab_size = vocab_size
        self.head = nn.Linear(width, vocab_size, bias=bias)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)


def plain(language: Projection, hidden: Tensor, ids: Tensor, label_smoothing: float = 0.0) -> Tensor:
    return F.cross_entropy(language.logits(hidden).float(), ids, reduction="none", label_smoothing=label_smoothing)


def with_gradients(losses: Callable[..., Tensor], language: Projection, *arguments: object) -> list[Tensor]:
    """Losses, and the gradients of hidden states, weight and bias under a different weight for each token."""
    hidden, ids, *rest = arguments
    leaf = hidden.detach().requires_grad_()
    language.zero_grad()
    result = losses(language, leaf, ids, *rest)
    (result * torch.linspace(0.5, 2.0, len(ids))).sum().backward()
    return [result.detach(), leaf.grad, *(parameter.grad for parameter in language.parameters())]


@pytest.mark.parametrize(
    ("rows", "vocab_size", "expected"),
    [(2048, 8192, 2048), (2048, 8193, 683), (2048, 49152, 171), (4096, 152064, 256), (1, 10**9, 1), (0, 512, 0)],
)
def test_chunks_begin_at_64_megabytes_of_logits_and_are_at_most_sixteen(
    rows: int, vocab_size: int, expected: int
) -> None:
    assert chunk_rows(rows, vocab_size) == expected


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("bias", [False, True])
def test_losses_and_gradients_in_chunks_are_those_of_the_plain_loss(
    monkeypatch: pytest.MonkeyPatch, label_smoothing: float, bias: bool
) -> None:
    monkeypatch.setattr(chunks, "WHOLE", 4 * 50 * 20)
    monkeypatch.setattr(chunks, "CHUNK", 4 * 50 * 10)
    language = Projection(8, 50, bias)
    hidden, ids = torch.randn(37, 8), torch.randint(50, (37,))
    assert chunk_rows(37, 50) == 10
    expected = with_gradients(plain, language, hidden, ids, label_smoothing)
    for value, reference in zip(
        with_gradients(token_losses, language, hidden, ids, label_smoothing), expected, strict=True
    ):
        torch.testing.assert_close(value, reference, rtol=0, atol=1e-6)
    with torch.no_grad():
        losses = token_losses(language, hidden, ids, label_smoothing)
    torch.testing.assert_close(losses, expected[0], rtol=0, atol=1e-6)


def test_in_mixed_precision_losses_are_fp32_and_those_of_the_plain_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "WHOLE", 0)
    monkeypatch.setattr(chunks, "CHUNK", 4 * 50 * 10)
    language = Projection(8, 50)
    hidden, ids = torch.randn(37, 8), torch.randint(50, (37,))
    with torch.autocast("cpu", torch.bfloat16):
        expected = with_gradients(plain, language, hidden, ids)
        values = with_gradients(token_losses, language, hidden, ids)
    assert values[0].dtype == torch.float32
    torch.testing.assert_close(values[:2], expected[:2], rtol=0, atol=1e-6)
    torch.testing.assert_close(values[2], expected[2], rtol=0, atol=2e-2)  # each chunk's share is rounded to bf16


def peak(call: Callable[[], None]) -> int:
    """The most bytes that were allocated at once during a call, beyond those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        most = max(most, total)
    return most


@pytest.mark.parametrize("label_smoothing", [0.0, pytest.param(0.1, marks=pytest.mark.slow)])
def test_the_peak_at_a_vocabulary_of_49152_and_2048_tokens_is_at_most_a_fifth(label_smoothing: float) -> None:
    language = Projection(192, 49152)
    hidden, ids = torch.randn(2048, 192), torch.randint(49152, (2048,))

    def of(losses: Callable[..., Tensor]) -> int:
        return peak(lambda: with_gradients(losses, language, hidden, ids, label_smoothing) and None)

    assert of(token_losses) <= of(plain) / 5
