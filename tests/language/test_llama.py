"""Packing, padding, cached decoding and checkpointing of the Llama decoder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lit_mm.errors import UserError
from lit_mm.language.llama import DecodeCache, Llama, attention_mask

ATOL = 2e-5  # fp32, the same sums in another order: measured 1e-6 on logits of size 0.5
SIZES = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn_width": 48, "vocab_size": 40}


def tiny(**changes: object) -> Llama:
    """Weights large enough that attention is not uniform."""
    language = Llama(**SIZES | changes).eval()
    with torch.no_grad():
        for parameter in language.parameters():
            if parameter.ndim == 2:
                parameter.mul_(10)
    return language


def row(ids: Tensor) -> dict[str, Tensor]:
    """[B, L] -> one sample per row, no padding."""
    return {"segment_ids": torch.ones_like(ids), "position_ids": torch.arange(ids.shape[1]).expand_as(ids)}


def test_the_mask_keeps_samples_apart_and_gives_padding_itself() -> None:
    mask = attention_mask(torch.tensor([[1, 1, 2, 0]]))
    assert mask.dtype == torch.bool
    assert mask[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_the_mask_of_a_cached_call_has_the_queries_last() -> None:
    mask = attention_mask(torch.tensor([[1], [1]]), torch.tensor([[0, 1, 1], [1, 1, 1]]))
    assert mask[:, 0].int().tolist() == [[[0, 1, 1]], [[1, 1, 1]]]


@torch.inference_mode()
def test_packed_samples_have_the_logits_they_have_alone() -> None:
    language = tiny()
    samples = [torch.randint(40, (1, length)) for length in (5, 3, 7)]
    packed = torch.cat([*samples, torch.zeros(1, 2, dtype=torch.long)], dim=1)
    segments = torch.tensor([[1] * 5 + [2] * 3 + [3] * 7 + [0] * 2])
    positions = torch.cat([torch.arange(n) for n in (5, 3, 7, 2)])[None]
    together = language.logits(language(language.embed(packed), segment_ids=segments, position_ids=positions))
    alone = [language.logits(language(language.embed(ids), **row(ids))) for ids in samples]
    torch.testing.assert_close(together[:, :15], torch.cat(alone, dim=1), rtol=0, atol=ATOL)
    assert torch.isfinite(together).all()


@torch.inference_mode()
def test_cached_decoding_of_left_padded_prompts_equals_the_full_forward() -> None:
    language = tiny()
    samples = [torch.randint(40, (1, 9)), torch.randint(40, (1, 6))]
    full = [language(language.embed(ids), **row(ids))[0] for ids in samples]

    ids = torch.cat([samples[0], torch.cat([torch.zeros(1, 3, dtype=torch.long), samples[1]], dim=1)])
    segments = torch.ones_like(ids)
    segments[1, :3] = 0
    positions = (segments.cumsum(1) - 1).clamp(min=0)
    cache, parts = DecodeCache(), []
    for start, end in [(0, 5), (5, 7), (7, 8), (8, 9)]:  # a prompt, then several tokens, then one at a time
        now = slice(start, end)
        part = language(
            language.embed(ids[:, now]), segment_ids=segments[:, now], position_ids=positions[:, now], cache=cache
        )
        parts.append(part)
        assert cache.length == end == cache.states.get_seq_length()
    hidden = torch.cat(parts, dim=1)
    torch.testing.assert_close(hidden[0], full[0], rtol=0, atol=ATOL)
    torch.testing.assert_close(hidden[1, 3:], full[1], rtol=0, atol=ATOL)


@torch.inference_mode()
def test_a_cache_can_be_reordered() -> None:
    language, ids = tiny(), torch.randint(40, (3, 6))
    full = language(language.embed(ids), **row(ids))
    cache, every = DecodeCache(), row(ids)
    language(language.embed(ids[:, :5]), **{k: v[:, :5] for k, v in every.items()}, cache=cache)
    keep = torch.tensor([2, 0])
    cache.reorder(keep)
    last = language(language.embed(ids[keep, 5:]), **{k: v[keep, 5:] for k, v in every.items()}, cache=cache)
    torch.testing.assert_close(last[:, 0], full[keep, 5], rtol=0, atol=ATOL)


def test_a_cache_in_checkpointed_training_is_refused() -> None:
    language, ids = tiny(activation_checkpointing=True).train(), torch.zeros(1, 2, dtype=torch.long)
    with pytest.raises(UserError, match="eval"):
        language(language.embed(ids), **row(ids), cache=DecodeCache())


def test_activation_checkpointing_leaves_the_gradients_alone() -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        language = tiny(activation_checkpointing=checkpointing).train()
        ids = torch.randint(40, (2, 6))
        language.logits(language(language.embed(ids), **row(ids))).logsumexp(-1).sum().backward()
        gradients.append({name: p.grad for name, p in language.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match="heads"):
        Llama(**SIZES | {"heads": 5})


def test_internlm2_7b_has_the_published_parameter_count() -> None:
    with torch.device("meta"):
        language = Llama(width=4096, layers=32, heads=32, kv_heads=8, ffn_width=14336, vocab_size=92544, rope_theta=1e6)
    assert sum(p.numel() for p in language.parameters()) == 7_737_708_544


def test_it_runs_under_bf16_autocast_with_padding() -> None:
    language, ids = tiny().train(), torch.randint(40, (2, 6))
    segments = torch.tensor([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]])
    with torch.autocast("cpu", torch.bfloat16):
        hidden = language(language.embed(ids), segment_ids=segments, position_ids=torch.arange(6).expand(2, -1) % 3)
        loss = language.logits(hidden[segments > 0]).float().logsumexp(-1).sum()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in language.parameters())
