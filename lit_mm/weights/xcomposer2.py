"""XComposer2 checkpoints (224, 490) -> our model's names."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lit_mm.weights.clip import hf_clip_to_vit
from lit_mm.weights.internlm2 import internlm2_to_llama
from lit_mm.weights.names import below, placed, without

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
    """The hub's names -> ours. What no map knows is handed on unchanged, so that `load_strict` names it.

    Args:
        heads, kv_heads: of the language model. Published: 32, 8 (7B); 16, 8 (1.8B).
        vision, connector, language: where the parts sit in the model to be loaded.
    Raises:
        UserError: heads that do not fit, an incomplete vision block.
    """
    text = internlm2_to_llama(without(state, VISION, CONNECTOR), heads=heads, kv_heads=kv_heads)
    return (
        placed(hf_clip_to_vit(below(state, VISION)), vision)
        | placed(below(state, CONNECTOR), f"{connector}.mlp")
        | placed(text, language, only="lm.")
    )
