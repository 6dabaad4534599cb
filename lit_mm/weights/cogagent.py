"""These key maps rename CogAgent's language model on the hub to the model, and back.

Unknown keys pass through; `load_strict` reports them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from lit_mm.weights.cogvlm import cogvlm_to_llama, llama_to_cogvlm

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
    places = {ours: theirs for theirs, ours in PLACES.items()}
    renamed = {}
    for name, tensor in llama_to_cogvlm(state).items():
        match = LAYER.fullmatch(name)
        place = places.get(match[2]) if match else None
        renamed[f"model.layers.{match[1]}.{place}.weight" if place else name] = tensor
    return renamed
