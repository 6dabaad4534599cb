"""This key map renames XComposer2 checkpoints (224 and 490 pixels)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lit_mm.weights.clip import hf_clip_to_vit
from lit_mm.weights.internlm2 import internlm2_to_llama
from lit_mm.weights.names import add_prefix, below, without

VISION, CONNECTOR = "vit.vision_tower.", "vision_proj."


def xcomposer2_to_model(
    state: Mapping[str, Tensor],
    *,
    heads: int,
    kv_heads: int,
    vision: str = "network.vision",
    connector: str = "network.connector",
    language: str = "network.language",
) -> dict[str, Tensor]:
    """Rename a checkpoint of the hub to the model. Unknown keys pass through; `load_strict` reports them.

    Args:
        heads, kv_heads: query and key/value heads of the language model. Published: 32, 8 (7B); 16, 8 (1.8B).
        vision, connector, language: name prefixes of the parts in the target model.
    Raises:
        UserError: the heads do not divide the packed rows, or a vision block lacks one of q, k and v.
    """
    text = internlm2_to_llama(without(state, VISION, CONNECTOR), heads=heads, kv_heads=kv_heads)
    return (
        add_prefix(hf_clip_to_vit(below(state, VISION)), vision)
        | add_prefix(below(state, CONNECTOR), f"{connector}.mlp")
        | add_prefix(text, language, only="lm.")
    )
