"""XComposer (1.0, and its -VL variant) checkpoints -> our model's names.

Pure renaming; what no map knows is handed on unchanged, so that `load_strict` names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from lit_mm.weights.eva import eva_to_vit
from lit_mm.weights.internlm2 import llama_to_llama
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
    rest: dict[str, Tensor] = {}
    below: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in (VISION, NORM, QFORMER, PROJECTION, LANGUAGE)}
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        prefix = next((prefix for prefix in below if name.startswith(prefix)), None)
        if prefix is not None:
            below[prefix][name.removeprefix(prefix)] = tensor
        elif name in FLAGS:
            ours[f"{connector}.{FLAGS[name]}"] = tensor.flatten()  # [1, 1, E] -> [E]
        elif name == QUERIES:
            below[QFORMER][name] = tensor
        else:
            rest[name] = tensor
    places = (
        (vision, eva_to_vit(below[VISION])),
        (f"{connector}.projector.norm", below[NORM]),
        (f"{connector}.projector.qformer", lavis_to_qformer(below[QFORMER])),
        (f"{connector}.projector.projection", below[PROJECTION]),
        (language, internlm_to_llama(below[LANGUAGE])),
    )
    for place, tensors in places:
        ours |= {f"{place}.{name}": tensor for name, tensor in tensors.items()}
    return ours | rest


def internlm_to_llama(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """InternLM-7B's names, with or without XComposer's low-rank branches -> `Llama`.

    InternLM (the first) is named as Llama is; its rotary positions are half-split, too, so no row moves.
    """
    wrapped = {found[1] for name in state if (found := BRANCH.fullmatch(name))}
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        owner, _, kind = name.rpartition(".")
        if found := BRANCH.fullmatch(name):
            renamed[f"{found[1]}.lora_{found[2].lower()}.weight"] = tensor
        else:
            renamed[f"{owner}.base.{kind}" if owner in wrapped else name] = tensor
    return llama_to_llama(renamed)
