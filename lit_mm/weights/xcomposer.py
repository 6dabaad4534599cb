"""These key maps rename XComposer checkpoints (1.0 and its -VL variant).

Unknown keys pass through; `load_strict` reports them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from lit_mm.weights.internlm2 import llama_to_llama
from lit_mm.weights.names import add_prefix, below, without
from lit_mm.weights.qformer import QUERIES, lavis_to_qformer
from lit_mm.weights.timm import eva_clip_to_timm

VISION, NORM, QFORMER, PROJECTION, LANGUAGE = (
    "visual_encoder.",
    "ln_vision.",
    "Qformer.",
    "internlm_proj.",
    "internlm_model.",
)
FLAGS = {"flag_image_start": "start", "flag_image_end": "end"}
BRANCH = re.compile(r"(.+)\.lora_([AB])\.weight")


def xcomposer_to_model(
    state: Mapping[str, Tensor],
    *,
    vision: str = "network.vision",
    connector: str = "network.connector",
    language: str = "network.language",
) -> dict[str, Tensor]:
    """Rename a checkpoint of the hub to the model.

    Args:
        vision, connector, language: name prefixes of the parts in the target model.
    Source: modeling_InternLM_XComposer.py of the release and its pytorch_model.bin.index.json.
    """
    rest = without(state, VISION, NORM, QFORMER, PROJECTION, LANGUAGE)
    qformer = below(state, QFORMER) | {name: tensor for name, tensor in state.items() if name == QUERIES}
    flags = {FLAGS[name]: tensor.flatten() for name, tensor in state.items() if name in FLAGS}  # [1, 1, E] -> [E]
    return (
        {name: tensor for name, tensor in rest.items() if name not in (QUERIES, *FLAGS)}
        | add_prefix(eva_clip_to_timm(below(state, VISION)), vision)
        | add_prefix(below(state, NORM), f"{connector}.projector.norm")
        | add_prefix(lavis_to_qformer(qformer), f"{connector}.projector.qformer")
        | add_prefix(below(state, PROJECTION), f"{connector}.projector.projection")
        | add_prefix(flags, connector)
        | add_prefix(internlm_to_llama(below(state, LANGUAGE)), language)
    )


def internlm_to_llama(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename InternLM-7B, with or without XComposer's low-rank branches, to `Llama`.

    The first InternLM has the names of Llama. Its rotary positions are half-split like Llama's, so no row moves.
    """
    wrapped = {match[1] for name in state if (match := BRANCH.fullmatch(name))}
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        owner, _, kind = name.rpartition(".")
        if match := BRANCH.fullmatch(name):
            renamed[f"{match[1]}.lora_{match[2]}.default.weight"] = tensor
        else:
            renamed[f"{owner}.base_layer.{kind}" if owner in wrapped else name] = tensor
    return llama_to_llama(renamed)
