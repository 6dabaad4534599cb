"""XComposer (1.0, and its -VL variant) checkpoints -> our model's names.

Pure renaming; what no map knows is handed on unchanged, so that `load_strict` names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from lit_mm.weights.eva import eva_to_vit
from lit_mm.weights.internlm2 import llama_to_llama
from lit_mm.weights.names import below, placed, without
from lit_mm.weights.qformer import QUERIES, lavis_to_qformer

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
    """The hub's names -> ours.

    Args:
        vision, connector, language: where the parts sit in the model to be loaded.
    Source: modeling_InternLM_XComposer.py of the release and its pytorch_model.bin.index.json.
    """
    rest = without(state, VISION, NORM, QFORMER, PROJECTION, LANGUAGE)
    qformer = below(state, QFORMER) | {name: tensor for name, tensor in state.items() if name == QUERIES}
    flags = {FLAGS[name]: tensor.flatten() for name, tensor in state.items() if name in FLAGS}  # [1, 1, E] -> [E]
    return (
        {name: tensor for name, tensor in rest.items() if name not in (QUERIES, *FLAGS)}
        | placed(eva_to_vit(below(state, VISION)), vision)
        | placed(below(state, NORM), f"{connector}.projector.norm")
        | placed(lavis_to_qformer(qformer), f"{connector}.projector.qformer")
        | placed(below(state, PROJECTION), f"{connector}.projector.projection")
        | placed(flags, connector)
        | placed(internlm_to_llama(below(state, LANGUAGE)), language)
    )


def internlm_to_llama(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """InternLM-7B's names, with or without XComposer's low-rank branches -> `Llama`.

    InternLM (the first) is named as Llama is; its rotary positions are half-split, too, so no row moves.
    """
    wrapped = {match[1] for name in state if (match := BRANCH.fullmatch(name))}
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        owner, _, kind = name.rpartition(".")
        if match := BRANCH.fullmatch(name):
            renamed[f"{match[1]}.lora_{match[2].lower()}.weight"] = tensor
        else:
            renamed[f"{owner}.base.{kind}" if owner in wrapped else name] = tensor
    return llama_to_llama(renamed)
