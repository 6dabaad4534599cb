"""Persimmon and Gemma on flat rows give the hidden states of transformers; cached decoding equals uncached."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from transformers import GemmaForCausalLM, PersimmonForCausalLM

from lit_mm.errors import UserError
from lit_mm.language.causal import CausalDecoder
from lit_mm.language.gemma import Gemma
from lit_mm.language.persimmon import Persimmon
from lit_mm.weights.convert import load_strict
from lit_mm.weights.internlm2 import llama_to_llama
from tests.rows import flat, logits

ATOL = 1e-5  # fp32 on a CPU: measured 1e-6 on logits of size 1
SAMPLES = [torch.tensor(ids) for ids in ([3, 8, 15, 4], [5, 9], [7, 2, 11])]


def persimmon(**options: object) -> Persimmon:
    return Persimmon(width=32, layers=2, heads=4, ffn_width=48, vocab_size=64, **options).eval()


def gemma(**options: object) -> Gemma:
    sizes = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 1, "ffn_width": 48, "vocab_size": 64, "head_width": 16}
    return Gemma(**sizes, **options).eval()


@pytest.mark.parametrize(("build", "reference"), [(persimmon, PersimmonForCausalLM), (gemma, GemmaForCausalLM)])
@torch.no_grad()
def test_a_packed_row_has_the_logits_of_transformers_sample_by_sample(build, reference) -> None:
    language = build()
    config = deepcopy(language.lm.config)
    config._attn_implementation = "eager"
    eager = reference(config).eval()
    eager.load_state_dict(language.lm.state_dict())
    expected = torch.cat([eager(sample[None]).logits[0] for sample in SAMPLES])
    torch.testing.assert_close(logits(language, SAMPLES), expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize("build", [persimmon, gemma])
@torch.no_grad()
def test_cached_decoding_equals_uncached(build) -> None:
    language: CausalDecoder = build()
    batch = flat(SAMPLES)
    hidden, state = language.begin(language.embed(batch.ids), batch)
    new = torch.tensor([[1, 2, 3], [4, 5, 6]])
    for step, tokens in enumerate(new, start=1):
        hidden = language.step(tokens, state)
        longer = [torch.cat([sample, new[:step, number]]) for number, sample in enumerate(SAMPLES)]
        ends = torch.tensor([len(sample) for sample in longer]).cumsum(0) - 1
        torch.testing.assert_close(language.logits(hidden), logits(language, longer)[ends], rtol=0, atol=ATOL)


@pytest.mark.parametrize("build", [persimmon, gemma])
@torch.no_grad()
def test_a_model_built_on_the_meta_device_gets_its_buffers_back(build) -> None:
    language = build()
    with torch.device("meta"):
        other = build()
    published = {name.removeprefix("lm."): tensor for name, tensor in language.state_dict().items()}
    load_strict(other, llama_to_llama(published))
    torch.testing.assert_close(logits(other, SAMPLES), logits(language, SAMPLES), rtol=0, atol=0)


def test_checkpointed_layers_refuse_cached_decoding_in_training_and_heads_must_divide() -> None:
    language = persimmon(activation_checkpointing="full").train()
    batch = flat(SAMPLES)
    with pytest.raises(UserError, match=r"needs `\.eval\(\)` first"):
        language.begin(language.embed(batch.ids), batch)
    with pytest.raises(UserError, match="`heads` must divide `width`"):
        Persimmon(width=30, layers=1, heads=4, ffn_width=48, vocab_size=64)
    with pytest.raises(UserError, match="multiple of `kv_heads`"):
        Gemma(width=32, layers=1, heads=4, kv_heads=3, ffn_width=48, vocab_size=64)
