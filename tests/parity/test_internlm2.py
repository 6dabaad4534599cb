"""InternLM2 with partial LoRA: our Llama with mapped weights gives the logits of the release; wqkv is split."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lit_mm.fusion.scatter import scatter_visual
from lit_mm.language.llama import Llama
from lit_mm.language.partial_lora import apply_partial_lora
from lit_mm.weights.convert import load_strict
from lit_mm.weights.internlm2 import internlm2_to_llama, split_wqkv
from tests.rows import flat

NAME = "internlm2_tiny"


def build(config: dict[str, Any]) -> Llama:
    language = Llama(
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_width=config["head_dim"],
        ffn_width=config["intermediate_size"],
        vocab_size=config["vocab_size"],
        rope_theta=config["rope_theta"],
        norm_eps=config["rms_norm_eps"],
        attention_bias=config["bias"],
    )
    return apply_partial_lora(language, rank=config["plora_r"], alpha=config["plora_alpha"]).eval()


def heads(config: dict[str, Any]) -> dict[str, int]:
    return {"heads": config["num_attention_heads"], "kv_heads": config["num_key_value_heads"]}


@pytest.fixture
def language(golden: Any) -> Llama:
    config = golden.json(NAME)["config"]
    language = build(config)
    load_strict(language, internlm2_to_llama(golden.tensors(NAME, "w."), **heads(config)))
    return language


@torch.inference_mode()
def logits(language: Llama, tensors: dict[str, Tensor], with_images: bool) -> Tensor:
    real = tensors["attention_mask"].bool()
    samples = [ids[row] for ids, row in zip(tensors["input_ids"].long(), real, strict=True)]
    places = tensors["im_mask"].bool()[real].nonzero()[:, 0] if with_images else torch.zeros(0, dtype=torch.long)
    batch = flat(samples, places.tolist())
    inputs = language.embed(batch.ids)
    if with_images:  # row-major order of the mask
        inputs = scatter_visual(inputs, tensors["image_embeds"], torch.arange(len(places)), places)
    return language.logits(language.learn(inputs, batch).hidden)


@pytest.mark.parametrize("with_images", [False, True], ids=["text", "image"])
def test_the_logits_agree_with_the_release(golden: Any, language: Llama, with_images: bool) -> None:
    tensors, about = golden.tensors(NAME), golden.json(NAME)
    expected = tensors["image_logits" if with_images else "text_logits"][tensors["attention_mask"].bool()]
    got = logits(language, tensors, with_images)
    torch.testing.assert_close(got, expected, rtol=0, atol=golden.tolerance(about["tolerance"]))


def test_every_layers_wqkv_splits_as_published(golden: Any, language: Llama) -> None:
    about, weights, split = golden.json(NAME), golden.tensors(NAME, "w."), golden.tensors(NAME, "split.")
    assert len(split) == 3 * about["config"]["num_hidden_layers"]
    for layer in range(about["config"]["num_hidden_layers"]):
        parts = split_wqkv(weights[f"model.layers.{layer}.attention.wqkv.weight"], **heads(about["config"]))
        for which, rows in zip("qkv", parts, strict=True):
            assert torch.equal(rows, split[f"{layer}.{which}"])
            loaded = getattr(language.decoder_layers[layer].self_attn, f"{which}_proj").base.weight
            assert torch.equal(loaded, split[f"{layer}.{which}"])


def test_every_published_weight_matters(golden: Any, language: Llama) -> None:
    """Changing any tensor of the checkpoint changes the logits, so no tensor is mapped to an unused place."""
    about, tensors, weights = golden.json(NAME), golden.tensors(NAME), golden.tensors(NAME, "w.")
    atol = golden.tolerance(about["tolerance"])
    right = logits(language, tensors, with_images=True)
    for name, value in weights.items():
        if "tok_embeddings" in name:
            continue  # most of its rows are not asked for
        altered = weights | {name: value + 0.3 * value.abs().mean() * torch.randn_like(value).sign()}
        load_strict(language, internlm2_to_llama(altered, **heads(about["config"])))
        moved = (logits(language, tensors, with_images=True) - right).abs().max()
        assert moved > atol, f"{name} altered: the logits moved by {moved:.1e}, within the tolerance {atol}"
