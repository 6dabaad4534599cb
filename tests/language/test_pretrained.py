"""Decoders of transformers: packed rows, cached decoding, checkpoints and configs."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_mm.errors import UserError
from lit_mm.language.partial_lora import apply_partial_lora
from lit_mm.language.pretrained import Pretrained
from lit_mm.weights.source import load_part
from tests.rows import flat, logits

ATOL = 1e-5  # fp32, the same sums in another order
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
GEMMA = {"head_dim": 8, "sliding_window": 3, "query_pre_attn_scalar": 8}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama3": {"model_type": "llama", "rope_parameters": LLAMA3},
    "mistral": {"sliding_window": 3},
    "mixtral": {"num_local_experts": 3, "num_experts_per_tok": 2},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma2": {**GEMMA, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 1.5},
    "gemma3_text": {**GEMMA, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {},
    "smollm3": {},
    "internlm3": {"head_dim": 8},
    "persimmon": {"qk_layernorm": True, "num_key_value_heads": None},
    "opt": {
        "ffn_dim": 48,
        "word_embed_proj_dim": 32,
        "dropout": 0.0,
        "intermediate_size": None,
        "num_key_value_heads": None,
    },
    "opt_350m": {
        "model_type": "opt",
        "ffn_dim": 48,
        "word_embed_proj_dim": 16,
        "do_layer_norm_before": False,
        "dropout": 0.0,
        "intermediate_size": None,
        "num_key_value_heads": None,
    },
}
FACTORS = {"short_factor": [1.0, 1.1, 1.3, 1.6], "long_factor": [1.0, 2.0, 4.0, 8.0]}
LONG = {"rope_type": "longrope", "rope_theta": 1e2, **FACTORS}


def config_of(kind: str) -> dict[str, Any]:
    config = {"model_type": kind, **SIZES, **KINDS[kind]}
    return {key: value for key, value in config.items() if value is not None}


def tiny(kind: str, **options: Any) -> Pretrained:
    """A decoder with weights so large that attention is not uniform."""
    torch.manual_seed(0)
    language = Pretrained(config_of(kind), **options).eval()
    with torch.no_grad():
        for parameter in language.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.ndim == 1))
    return language


def reference(language: Pretrained) -> nn.Module:
    """transformers' model with the same weights and its eager attention."""
    settings = deepcopy(language.lm.config)
    settings._attn_implementation = "eager"
    model = type(language.lm)(settings).eval()
    model.load_state_dict(language.lm.state_dict())
    return model


def draw(*lengths: int) -> list[Tensor]:
    return [torch.randint(64, (length,)) for length in lengths]


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_a_packed_row_and_cached_decoding_give_the_logits_of_transformers(kind: str) -> None:
    language = tiny(kind)
    theirs, samples = reference(language), draw(9, 5, 7)
    alone = [theirs(input_ids=ids[None]).logits[0] for ids in samples]
    torch.testing.assert_close(logits(language, samples), torch.cat(alone), rtol=0, atol=ATOL)
    batch = flat([ids[:-3] for ids in samples])
    hidden, state = language.begin(language.embed(batch.ids), batch)
    for step in range(3):
        expected = torch.stack([of[len(of) - 4 + step] for of in alone])
        torch.testing.assert_close(language.logits(hidden), expected, rtol=0, atol=ATOL)
        hidden = language.step(torch.stack([ids[len(ids) - 3 + step] for ids in samples]), state)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_leaves_the_gradients_alone(kind: str) -> None:
    gradients = []
    for checkpointing in ("none", "full"):
        language = tiny(kind, activation_checkpointing=checkpointing).train()
        logits(language, [torch.arange(6), torch.arange(4)]).logsumexp(-1).sum().backward()
        gradients.append({name: p.grad for name, p in language.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-4)
    assert all(gradient is not None for gradient in gradients[0].values())


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_a_model_built_on_meta_comes_to_life_from_a_published_folder(kind: str, tmp_path: Path) -> None:
    language = tiny(kind)
    reference(language).save_pretrained(tmp_path)
    with torch.device("meta"):
        empty = Pretrained(str(tmp_path)).eval()
    load_part(empty, f"transformers:{tmp_path}", "language")
    samples = draw(5, 8)
    assert torch.equal(logits(empty, samples), logits(language, samples))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mamba"}, "mamba"),
        ({"model_type": "llama", "hidden_sise": 32}, "hidden_sise"),
        ({}, "model_type"),
    ],
)
def test_configs_that_cannot_be_read_are_refused_by_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Pretrained(config)


def test_frequencies_that_depend_on_the_row_are_refused() -> None:
    ropes = {"sliding_attention": {"rope_theta": 1e4}, "full_attention": {"rope_type": "dynamic", "factor": 2.0}}
    assert Pretrained(config_of("gemma3_text") | {"rope_parameters": ropes}).max_length == 64
    ropes["full_attention"] = LONG | {"original_max_position_embeddings": 32}
    with pytest.raises(UserError, match="longrope"):
        Pretrained(config_of("gemma3_text") | {"rope_parameters": ropes})


def long_phi3(**options: Any) -> Pretrained:
    """A Phi-3 whose frequencies change behind five tokens."""
    torch.manual_seed(0)
    config = config_of("phi3") | {"rope_parameters": LONG, "original_max_position_embeddings": 5}
    language = Pretrained(config, **options).eval()
    for parameter in language.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2)
    return language


@torch.inference_mode()
def test_long_and_short_samples_of_a_row_have_the_frequencies_that_they_have_alone() -> None:
    language, samples = long_phi3(), draw(9, 5, 7)
    theirs = reference(language)
    alone = [theirs(input_ids=ids[None]).logits[0] for ids in samples]
    torch.testing.assert_close(logits(language, samples), torch.cat(alone), rtol=0, atol=ATOL)
    batch = flat([ids[:-3] for ids in samples[:2]])
    hidden, state = language.begin(language.embed(batch.ids), batch)
    for step in range(3):
        expected = torch.stack([of[len(of) - 4 + step] for of in alone[:2]])
        torch.testing.assert_close(language.logits(hidden), expected, rtol=0, atol=ATOL)
        hidden = language.step(torch.stack([ids[len(ids) - 3 + step] for ids in samples[:2]]), state)
    with pytest.raises(UserError, match="grows beyond 5 tokens"):  # the second sample has five
        language.step(torch.tensor([1, 1]), state)


@torch.inference_mode()
def test_frequencies_by_length_come_to_life_from_the_meta_device(tmp_path: Path) -> None:
    language, samples = long_phi3(), draw(9, 5)
    reference(language).save_pretrained(tmp_path)
    with torch.device("meta"):
        empty = Pretrained(str(tmp_path)).eval()
    load_part(empty, f"transformers:{tmp_path}", "language")
    assert torch.equal(logits(empty, samples), logits(language, samples))


def test_samples_longer_than_a_table_of_positions_are_refused() -> None:
    with pytest.raises(UserError, match="64 tokens, but a sample has 65"):
        logits(tiny("opt"), draw(65))


def test_internlm2_and_qwen_are_read_by_their_config(tmp_path: Path) -> None:
    numbers = {key: SIZES[key] for key in SIZES if key != "num_key_value_heads"}
    internlm2 = numbers | {
        "model_type": "internlm2",
        "num_key_value_heads": 2,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "auto_map": {"AutoModel": "modeling_internlm2.InternLM2"},
        "bias": False,
    }
    qwen = numbers | {"model_type": "qwen", "seq_length": 64, "layer_norm_epsilon": 1e-6, "rotary_emb_base": 1e4}
    internlm = numbers | {"model_type": "internlm", "rotary": {"base": 1e4, "type": "dynamic"}, "bias": True}
    for config, biases, ffn_width, limit in ((internlm2, 0, 48, 64), (internlm, 4, 48, 64), (qwen, 3, 24, None)):
        (tmp_path / "config.json").write_text(json.dumps(config))
        language = Pretrained(str(tmp_path))
        layer = language.decoder_layers[0]
        assert sum(name.endswith("bias") for name, _ in layer.named_parameters()) == biases
        assert layer.mlp.up_proj.out_features == ffn_width
        assert language.max_length == limit
    assert language.lm.config.rope_parameters["rope_theta"] == 1e4


@torch.inference_mode()
def test_partial_lora_wraps_plain_linears_and_changes_visual_positions_alone() -> None:
    language, samples = tiny("qwen3"), draw(5, 4)
    plain = logits(language, samples)
    apply_partial_lora(language, rank=2, dropout=0.0)
    for name, parameter in language.named_parameters():
        if "lora_b" in name:
            parameter.copy_(torch.randn_like(parameter))
    assert torch.equal(logits(language, samples, visual=[]), plain)
    assert not torch.allclose(logits(language, samples, visual=[6, 7])[6:], plain[6:])
    with pytest.raises(UserError, match=r"no plain linears .*o_proj"):
        apply_partial_lora(tiny("opt"), rank=2)
