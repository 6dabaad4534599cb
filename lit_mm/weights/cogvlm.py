"""These key maps rename CogVLM checkpoints of the hub to the model, and back.

Unknown keys pass through; `load_strict` reports them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from lit_mm.weights.names import add_prefix, below, without
from lit_mm.weights.timm import cogvlm_to_timm, timm_to_cogvlm

VISION = "model.vision."
LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.weight")
TOP = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
KINDS = {"language": "base", "vision": "expert"}  # name of the release -> attribute of `Expert`
PLACES = (
    {f"self_attn.{kind}_expert_dense": f"self_attn.o_proj.{attribute}" for kind, attribute in KINDS.items()}
    | {
        f"mlp.{kind}_mlp.{linear}_proj": f"mlp.{attribute}.{linear}_proj"
        for kind, attribute in KINDS.items()
        for linear in ("gate", "up", "down")
    }
    | {norm: norm for norm in ("input_layernorm", "post_attention_layernorm")}
)
PACKED = {f"self_attn.{kind}_expert_query_key_value": attribute for kind, attribute in KINDS.items()}
ROTARY = "rotary_emb.inv_freq"
ADAPTER = {
    "linear_proj.linear_proj.weight": "projector.proj.weight",
    "linear_proj.norm1.weight": "projector.norm.weight",
    "linear_proj.norm1.bias": "projector.norm.bias",
    "linear_proj.gate_proj.weight": "projector.gate.weight",
    "linear_proj.dense_h_to_4h.weight": "projector.up.weight",
    "linear_proj.dense_4h_to_h.weight": "projector.down.weight",
    "pos_embed": "projector.positions",  # CogAgent's
}
FLAGS = {"boi": "start", "eoi": "end"}


def cogvlm_to_llama(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the language model of a checkpoint to a `Llama` with a visual expert.

    The packed linears have the rows of q, then k, then v, equally many of each. Rotary frequencies are dropped.

    Args:
        state: tensors by name, without those of the vision encoder.
    Source: modeling_cogvlm.py of the release.
    """
    mapped: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = LAYER.fullmatch(name)
        if name.endswith(ROTARY):
            continue
        if match and match[2] in PLACES:
            mapped[f"lm.model.layers.{match[1]}.{PLACES[match[2]]}.weight"] = tensor
        elif match and match[2] in PACKED:
            for linear, rows in zip("qkv", tensor.chunk(3), strict=True):
                place = f"lm.model.layers.{match[1]}.self_attn.{linear}_proj.{PACKED[match[2]]}.weight"
                mapped[place] = rows.contiguous()
        else:
            mapped[f"lm.{name}" if name in TOP else name] = tensor
    return mapped


def llama_to_cogvlm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a `Llama` with a visual expert to the names of the hub; it undoes `cogvlm_to_llama`."""
    layer = re.compile(r"lm\.model\.layers\.(\d+)\.(.+)\.weight")
    packed = re.compile(r"self_attn\.([qkv])_proj\.(base|expert)")
    places = {attribute: published for published, attribute in PLACES.items()}
    packs = {attribute: name for name, attribute in PACKED.items()}
    mapped: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = layer.fullmatch(name)
        linear = packed.fullmatch(match[2]) if match else None
        if match and match[2] in places:
            mapped[f"model.layers.{match[1]}.{places[match[2]]}.weight"] = tensor
        elif match and linear:
            if linear[1] == "q":
                rows = [state[name.replace(".q_proj.", f".{piece}_proj.")] for piece in "qkv"]
                mapped[f"model.layers.{match[1]}.{packs[linear[2]]}.weight"] = torch.cat(rows)
        else:
            mapped[name.removeprefix("lm.")] = tensor
    return mapped


def visual_to_parts(state: Mapping[str, Tensor], *, vision: str, connector: str) -> dict[str, Tensor]:
    """Rename the vision encoder with its adapter (names below `model.vision.`) to a `TimmEncoder` and a connector.

    The connector is a `GLUProjector` between flags.

    Args:
        state: tensors by name, without the prefix.
        vision, connector: name prefixes of the parts in the target model.
    Source: visual.py of the release.
    """
    adapter = {ADAPTER[name]: tensor for name, tensor in state.items() if name in ADAPTER}
    flags = {FLAGS[name]: tensor.flatten() for name, tensor in state.items() if name in FLAGS}  # [1, 1, E] -> [E]
    encoder = {name: tensor for name, tensor in state.items() if name not in ADAPTER and name not in FLAGS}
    return add_prefix(cogvlm_to_timm(encoder), vision) | add_prefix(adapter | flags, connector)


def parts_to_visual(encoder: Mapping[str, Tensor], connector: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the parts of `visual_to_parts`, given without their prefixes, to the names below `model.vision.`."""
    names = {part: published for published, part in ADAPTER.items()}
    flags = {part: published for published, part in FLAGS.items()}
    mapped = timm_to_cogvlm(encoder)
    for name, tensor in connector.items():
        mapped[flags.get(name) or names.get(name, name)] = tensor[None, None] if name in flags else tensor
    return mapped


def cogvlm_to_model(state: Mapping[str, Tensor], *, network: str = "network") -> dict[str, Tensor]:
    """Rename a whole CogVLM checkpoint of the hub to the model.

    Args:
        state: tensors by name.
        network: name prefix of the network in the target model.
    Source: modeling_cogvlm.py and visual.py of the release.
    """
    text = cogvlm_to_llama(without(state, VISION))
    return add_prefix(text, f"{network}.language", only="lm.") | visual_to_parts(
        below(state, VISION), vision=f"{network}.vision", connector=f"{network}.connector"
    )


def model_to_cogvlm(state: Mapping[str, Tensor], *, network: str = "network") -> dict[str, Tensor]:
    """Rename the model to a whole CogVLM checkpoint of the hub; it undoes `cogvlm_to_model`."""
    parts = {part: below(state, f"{network}.{part}.") for part in ("vision", "connector", "language")}
    visual = parts_to_visual(parts["vision"], parts["connector"])
    return llama_to_cogvlm(parts["language"]) | {f"{VISION}{name}": tensor for name, tensor in visual.items()}
