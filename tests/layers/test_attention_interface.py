"""Decoders of transformers on a flat row: each sample gets what it gets alone, windows and soft caps included."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lit_mm.layers.attention import NAME, Segments

LENGTHS = (5, 9, 4)
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
DECODERS = {
    "llama": {},
    "mistral": {"sliding_window": 3},
    "qwen3": {},
    "gemma2": {"sliding_window": 3, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 0.5},
    "gemma3_text": {"sliding_window": 3, "query_pre_attn_scalar": 8},
}


def build(kind: str, attention: str) -> PreTrainedModel:
    """A tiny decoder, with the same weights at every call, large enough that attention is not uniform."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES, **DECODERS[kind])
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name:
                parameter.mul_(10)
    return model


@pytest.mark.parametrize("kind", DECODERS)
@torch.inference_mode()
def test_a_flat_row_gives_what_eager_attention_gives_sample_by_sample(kind: str) -> None:
    reference, model = build(kind, "eager"), build(kind, NAME)
    samples = [torch.randint(3, 64, (1, length)) for length in LENGTHS]
    expected = torch.cat([reference(input_ids=ids).logits for ids in samples], dim=1)
    logits = model(
        input_ids=torch.cat(samples, dim=1),
        position_ids=torch.cat([torch.arange(length) for length in LENGTHS])[None],
        segments=Segments(LENGTHS),
        use_cache=False,
    ).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)  # fp32, logits up to 4: measured 2e-6
