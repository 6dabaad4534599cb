"""These key maps rename CogVLM checkpoints of the hub to the model, and back.

Unknown keys pass through; `load_strict` reports them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

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
    places = {ours: theirs for theirs, ours in PLACES.items()}
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
