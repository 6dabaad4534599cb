"""A decoder layer with a visual expert agrees with the release, forward and backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lit_mm.language.llama import Llama
from lit_mm.language.routed import Routing
from lit_mm.language.visual_expert import apply_visual_expert
from lit_mm.layers.attention import Segments
from lit_mm.weights.cogvlm import cogvlm_to_llama, llama_to_cogvlm
from lit_mm.weights.convert import load_strict

NAME = "cogvlm_layer"


def build(config: dict[str, Any]) -> Llama:
    language = Llama(
        width=config["hidden_size"],
        layers=1,
        heads=config["num_attention_heads"],
        kv_heads=config["num_attention_heads"],
        head_width=config["head_dim"],
        ffn_width=config["intermediate_size"],
        vocab_size=8,
        rope_theta=config["rope_base"],
        norm_eps=config["rms_norm_eps"],
    )
    return apply_visual_expert(language)


def load(language: Llama, weights: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """Load a published layer; return it under its published names."""
    layer = {f"model.layers.0.{name}": tensor for name, tensor in weights.items()}
    load_strict(language, cogvlm_to_llama(layer), allow_missing=("embed_tokens", "lm.model.norm", "lm_head"))
    return layer


@pytest.mark.golden_cases(NAME)
def test_a_layer_and_its_gradients_agree_with_the_release(golden: Any, case: dict[str, Any]) -> None:
    about = golden.json(NAME)
    language = build(about["config"])
    load(language, golden.tensors(NAME, "weight."), about["config"])
    tensors = golden.tensors(NAME, f"{case['name']}.")
    shape = tensors["hidden_in"].shape[:2]
    real = torch.ones(shape) if case["attention_mask"] is None else torch.tensor(case["attention_mask"])
    real = real.bool()
    row = tensors["hidden_in"][real][None].requires_grad_()  # [1, T, E]
    positions = torch.tensor(case["position_ids"])[real][None]
    routed = torch.tensor(case["vision_expert_mask"]).bool()[real].nonzero()[:, 0]
    layer = language.decoder_layers[0]
    outputs: dict[str, Tensor] = {}
    layer.self_attn.register_forward_hook(lambda *args: outputs.update(attn_out=args[2][0]))
    layer.mlp.register_forward_hook(lambda *args: outputs.update(mlp_out=args[2]))
    outputs["layer_out"] = layer(
        row,
        position_embeddings=language.lm.model.rotary_emb(row, positions),
        segments=Segments(real.sum(1).tolist()),
        routing=Routing.of(routed, row.shape[1]),
    )
    atol = golden.tolerance(about["tolerance"])
    for name, value in outputs.items():
        torch.testing.assert_close(value[0], tensors[name][real], rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
    (outputs["layer_out"][0] * tensors["loss_weight"][real]).sum().backward()
    torch.testing.assert_close(row.grad[0], tensors["grad_hidden_in"][real], rtol=0, atol=1e-4)
    gradients = {name: parameter.grad for name, parameter in language.named_parameters() if parameter.grad is not None}
    norms = {name.removeprefix("model.layers.0."): g.norm() for name, g in llama_to_cogvlm(gradients).items()}
    for name, norm in case["grad_l2"].items():
        torch.testing.assert_close(norms[name], torch.tensor(norm or 0.0), rtol=1e-5, atol=1e-4)


def test_the_key_map_and_its_inverse_keep_every_tensor(golden: Any) -> None:
    about = golden.json(NAME)
    language = build(about["config"])
    layer = load(language, golden.tensors(NAME, "weight."), about["config"])
    back = llama_to_cogvlm({name: t for name, t in language.state_dict().items() if ".layers." in name})
    assert back.keys() == layer.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in layer.items())
