"""XComposer2 checkpoints (224, 490) -> our model's names."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lit_mm.weights.clip import hf_clip_to_vit
from lit_mm.weights.internlm2 import internlm2_to_llama

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

    def below(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}

    rest = {name: tensor for name, tensor in state.items() if not name.startswith((VISION, CONNECTOR))}
    text = internlm2_to_llama(rest, heads=heads, kv_heads=kv_heads)
    ours = {f"{vision}.{name}": tensor for name, tensor in hf_clip_to_vit(below(VISION)).items()}
    ours |= {f"{connector}.mlp.{name}": tensor for name, tensor in below(CONNECTOR).items()}
    return ours | {f"{language}.{name}" if name.startswith("lm.") else name: tensor for name, tensor in text.items()}
