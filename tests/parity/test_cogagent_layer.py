"""A decoder layer with visual expert and cross-attention agrees with the release, forward and backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lit_mm.language.cross_attention import apply_cross_attention
from lit_mm.language.llama import Llama
from lit_mm.language.routed import Routing
from lit_mm.layers.attention import Segments
from lit_mm.weights.cogagent import cogagent_to_llama, llama_to_cogagent
from lit_mm.weights.convert import load_strict
from tests.parity.test_cogvlm_layer import build as build_cogvlm

NAME = "cogagent_cross"


def build(config: dict[str, Any]) -> Llama:
    width = config["cross_compute_hidden_size"]
    heads = width // config["cross_head_dim"]
    return apply_cross_attention(build_cogvlm(config), config["cross_hidden_size"], width, heads)


def load(language: Llama, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Load a published layer; return it under its published names."""
    layer = {f"model.layers.0.{name}": tensor for name, tensor in weights.items()}
    load_strict(language, cogagent_to_llama(layer), allow_missing=("embed_tokens", "lm.model.norm", "lm_head"))
    return layer


@pytest.mark.golden_cases(NAME)
def test_a_layer_and_its_gradients_agree_with_the_release(golden: Any, case: dict[str, Any]) -> None:
    about = golden.json(NAME)
    language = build(about["config"])
    load(language, golden.tensors(NAME, "weight."))
    tensors = golden.tensors(NAME, f"{case['name']}.")
    count, length = tensors["hidden_in"].shape[:2]
    row = tensors["hidden_in"].flatten(0, 1)[None].requires_grad_()
    memory = tensors["encoder_outputs"].flatten(0, 1)[None].requires_grad_()
    lengths = [length] * count
    layer = language.decoder_layers[0]
    outputs: dict[str, Tensor] = {}
    layer.self_attn.register_forward_hook(lambda *args: outputs.update(self_attn_out=args[2][0]))
    layer.cross_attention.register_forward_hook(lambda *args: outputs.update(cross_attn_out=args[2]))
    routed = torch.tensor(case["vision_expert_mask"]).flatten().nonzero()[:, 0]
    outputs["layer_out"] = layer(
        row,
        position_embeddings=language.lm.model.rotary_emb(row, torch.tensor(case["position_ids"]).view(1, -1)),
        segments=Segments(lengths),
        routing=Routing.of(routed, row.shape[1]),
        memory=memory,
        memory_segments=Segments(lengths, [tensors["encoder_outputs"].shape[1]] * count, causal=False),
    )
    atol = golden.tolerance(about["tolerance"])
    for name, value in outputs.items():
        torch.testing.assert_close(value.view_as(tensors[name]), tensors[name], rtol=0, atol=atol)
    (outputs["layer_out"].view_as(tensors["loss_weight"]) * tensors["loss_weight"]).sum().backward()
    for name, value in (("grad_hidden_in", row.grad), ("grad_encoder_outputs", memory.grad)):
        torch.testing.assert_close(value.view_as(tensors[name]), tensors[name], rtol=0, atol=1e-4)
    gradients = {name: parameter.grad for name, parameter in language.named_parameters() if parameter.grad is not None}
    norms = {name.removeprefix("model.layers.0."): g.norm() for name, g in llama_to_cogagent(gradients).items()}
    for name, norm in case["grad_l2"].items():
        torch.testing.assert_close(norms[name], torch.tensor(norm or 0.0), rtol=1e-5, atol=1e-4)


def test_the_key_map_and_its_inverse_keep_every_tensor(golden: Any) -> None:
    language = build(golden.json(NAME)["config"])
    layer = load(language, golden.tensors(NAME, "weight."))
    back = llama_to_cogagent({name: t for name, t in language.state_dict().items() if ".layers." in name})
    assert back.keys() == layer.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in layer.items())
