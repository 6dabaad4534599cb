"""The Llama decoder: flat rows, cached decoding and activation checkpointing."""

from __future__ import annotations

import pytest
import torch

from lit_mm.errors import UserError
from lit_mm.language.llama import Llama
from tests.rows import flat, hidden, logits

ATOL = 2e-5  # fp32, the same sums in another order: measured 1e-6 on logits of size 0.5
SIZES = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn_width": 48, "vocab_size": 40}


def tiny(**changes: object) -> Llama:
    """A decoder with weights so large that attention is not uniform."""
    language = Llama(**SIZES | changes).eval()
    with torch.no_grad():
        for parameter in language.parameters():
            if parameter.ndim == 2:
                parameter.mul_(10)
    return language


@torch.inference_mode()
def test_samples_of_a_flat_row_have_the_logits_they_have_alone() -> None:
    language = tiny()
    samples = [torch.randint(40, (length,)) for length in (5, 3, 7)]
    alone = [logits(language, [ids]) for ids in samples]
    torch.testing.assert_close(logits(language, samples), torch.cat(alone), rtol=0, atol=ATOL)


@torch.inference_mode()
def test_decoding_token_by_token_equals_the_full_forward() -> None:
    language = tiny()
    samples = [torch.randint(40, (length,)) for length in (9, 6, 7)]
    full = [hidden(language, [ids]) for ids in samples]
    batch = flat([ids[:-3] for ids in samples])
    states, state = language.begin(language.embed(batch.ids), batch)
    for step in range(3):
        for number, ids in enumerate(samples):
            expected = full[number][len(ids) - 4 + step]
            torch.testing.assert_close(states[number], expected, rtol=0, atol=ATOL)
        states = language.step(torch.stack([ids[len(ids) - 3 + step] for ids in samples]), state)


@torch.inference_mode()
def test_samples_of_a_state_can_be_reordered_and_leave() -> None:
    language = tiny()
    samples = [torch.randint(40, (length,)) for length in (4, 8, 6)]
    batch = flat([ids[:-2] for ids in samples])
    _, state = language.begin(language.embed(batch.ids), batch)
    language.step(torch.stack([ids[-2] for ids in samples]), state)
    state.reorder(torch.tensor([2, 0]))
    states = language.step(torch.stack([samples[2][-1], samples[0][-1]]), state)
    for found, ids in zip(states, (samples[2], samples[0]), strict=True):
        torch.testing.assert_close(found, hidden(language, [ids])[-1], rtol=0, atol=ATOL)


def test_decoding_in_checkpointed_training_is_refused() -> None:
    language, batch = tiny(activation_checkpointing="full").train(), flat([torch.zeros(2, dtype=torch.long)])
    with pytest.raises(UserError, match="eval"):
        language.begin(language.embed(batch.ids), batch)


def test_activation_checkpointing_leaves_the_gradients_alone() -> None:
    gradients = []
    for checkpointing in ("none", "full"):
        torch.manual_seed(1)
        language = tiny(activation_checkpointing=checkpointing).train()
        logits(language, [torch.randint(40, (6,)), torch.randint(40, (4,))]).logsumexp(-1).sum().backward()
        gradients.append({name: p.grad for name, p in language.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match="heads"):
        Llama(**SIZES | {"heads": 5})


def test_internlm2_7b_has_the_published_parameter_count() -> None:
    with torch.device("meta"):
        language = Llama(width=4096, layers=32, heads=32, kv_heads=8, ffn_width=14336, vocab_size=92544, rope_theta=1e6)
    assert sum(p.numel() for p in language.parameters()) == 7_737_708_544


def test_it_runs_under_bf16_autocast() -> None:
    language = tiny().train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = logits(language, [torch.randint(40, (n,)) for n in (3, 2, 6)]).float().logsumexp(-1).sum()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in language.parameters())
