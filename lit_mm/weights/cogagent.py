"""These key maps rename CogAgent checkpoints of the hub to the model, and back.

Unknown keys pass through; `load_strict` reports them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from lit_mm.weights.cogvlm import VISION, cogvlm_to_llama, llama_to_cogvlm, parts_to_visual, visual_to_parts
from lit_mm.weights.names import add_prefix, below, without
from lit_mm.weights.timm import eva_clip_to_timm, timm_to_eva_clip

SECOND = "model.cross_vision."
TABLE = "pos_embed"
ENCODER = "vit.model."

PLACES = {
    "cross_attn.query": "cross_attention.q",
    "cross_attn.key_value": "cross_attention.kv",
    "cross_attn.dense": "cross_attention.out",
    "post_cross_attention_layernorm": "cross_norm",
}
LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.weight")


def cogagent_to_llama(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the language model of a checkpoint to a `Llama` with a visual expert and cross-attention.

    The norm whose published name is `post_cross_attention_layernorm` stands before the cross-attention.

    Args:
        state: tensors by name, without those of the vision encoders.
    Source: modeling_cogagent.py of the release.
    """
    renamed = {}
    for name, tensor in state.items():
        match = LAYER.fullmatch(name)
        place = PLACES.get(match[2]) if match else None
        renamed[f"lm.model.layers.{match[1]}.{place}.weight" if place else name] = tensor
    return cogvlm_to_llama(renamed)


def llama_to_cogagent(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a `Llama` with visual expert and cross-attention to the names of the hub; see `cogagent_to_llama`."""
    places = {attribute: published for published, attribute in PLACES.items()}
    renamed = {}
    for name, tensor in llama_to_cogvlm(state).items():
        match = LAYER.fullmatch(name)
        place = places.get(match[2]) if match else None
        renamed[f"model.layers.{match[1]}.{place}.weight" if place else name] = tensor
    return renamed


def cogagent_to_model(state: Mapping[str, Tensor], *, network: str = "network") -> dict[str, Tensor]:
    """Rename a whole CogAgent checkpoint of the hub to the model.

    Args:
        state: tensors by name.
        network: name prefix of the network in the target model.
    Source: modeling_cogagent.py, visual.py and cross_visual.py of the release.
    """
    second = below(state, SECOND)
    table = {"table": second[TABLE]} if TABLE in second else {}
    unknown = {f"{SECOND}{name}": t for name, t in second.items() if name != TABLE and not name.startswith(ENCODER)}
    return (
        unknown
        | add_prefix(cogagent_to_llama(without(state, VISION, SECOND)), f"{network}.language", only="lm.")
        | visual_to_parts(below(state, VISION), vision=f"{network}.vision", connector=f"{network}.connector")
        | add_prefix(eva_clip_to_timm(below(second, ENCODER)), f"{network}.second_vision")
        | add_prefix(table, f"{network}.second_connector")
    )


def model_to_cogagent(state: Mapping[str, Tensor], *, network: str = "network") -> dict[str, Tensor]:
    """Rename the model to a whole CogAgent checkpoint of the hub.

    It undoes `cogagent_to_model`, except for the last block, norm and head of the high-resolution encoder, which the
    release stores and never runs.
    """
    names = ("vision", "connector", "language", "second_vision", "second_connector")
    parts = {part: below(state, f"{network}.{part}.") for part in names}
    visual = parts_to_visual(parts["vision"], parts["connector"])
    return (
        llama_to_cogagent(parts["language"])
        | {f"{VISION}{name}": tensor for name, tensor in visual.items()}
        | {f"{SECOND}{ENCODER}{name}": tensor for name, tensor in timm_to_eva_clip(parts["second_vision"]).items()}
        | {f"{SECOND}{TABLE}": tensor for tensor in parts["second_connector"].values()}
    )
