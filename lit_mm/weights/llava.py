"""LLaVA, LLaVA-1.5 and VILA-1.0 checkpoints -> our models' names: the authors' and Hugging Face's.

Pure renaming; what a map does not know it hands on unchanged, so that `load_strict` names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from lit_mm.weights.clip import hf_clip_to_vit
from lit_mm.weights.internlm2 import llama_to_llama
from lit_mm.weights.names import placed

VISION = "model.vision_tower.vision_tower."
PROJECTOR = "model.mm_projector."
PROJECTOR_PIECE = re.compile(r"(?:(\d+)\.)?(weight|bias)")
LANGUAGE = ("model.embed_tokens.", "model.layers.", "model.norm.", "lm_head.")

# Hugging Face's names, those of files from before transformers 5 last
HF_VISION = ("model.vision_tower.", "vision_tower.")
HF_PROJECTOR = re.compile(r"(?:model\.)?multi_modal_projector\.linear_([12])\.(weight|bias)")
HF_LANGUAGE = (
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("lm_head.", "lm_head."),
)


def llava_to_model(
    state: Mapping[str, Tensor],
    *,
    vision: str = "network.vision",
    connector: str = "network.connector",
    language: str = "network.language",
) -> dict[str, Tensor]:
    """The authors' names -> ours: one linear (`mm_projector.weight`) or an MLP (`mm_projector.0.weight`).

    A checkpoint without the vision encoder, which stage 2 leaves frozen, gives an incomplete state: load CLIP's beside
    it. `mm_projector.bin` of a first stage is a checkpoint of the connector alone.

    Args:
        vision, connector, language: where the parts sit in the model to be loaded.
    Source: github.com/haotian-liu/LLaVA c121f04, llava_arch.py and multimodal_projector/builder.py.
    """
    rest: dict[str, Tensor] = {}
    tower: dict[str, Tensor] = {}
    text: dict[str, Tensor] = {}
    mapped: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith(VISION):
            tower[name.removeprefix(VISION)] = tensor
        elif name.startswith(PROJECTOR) and (match := PROJECTOR_PIECE.fullmatch(name.removeprefix(PROJECTOR))):
            mapped[f"{connector}.mlp.{match[1] or 0}.{match[2]}"] = tensor
        elif name.startswith(LANGUAGE):
            text[name] = tensor
        else:
            rest[name] = tensor
    return mapped | rest | placed(hf_clip_to_vit(tower), vision) | placed(llama_to_llama(text), language)


def hf_llava_to_model(
    state: Mapping[str, Tensor],
    *,
    vision: str = "network.vision",
    connector: str = "network.connector",
    language: str = "network.language",
) -> dict[str, Tensor]:
    """LlavaForConditionalGeneration's names, of transformers 5 or before -> ours.

    Args:
        vision, connector, language: where the parts sit in the model to be loaded.
    """
    rest: dict[str, Tensor] = {}
    tower: dict[str, Tensor] = {}
    text: dict[str, Tensor] = {}
    mapped: dict[str, Tensor] = {}
    for name, tensor in state.items():
        above = next((prefix for prefix in HF_VISION if name.startswith(prefix)), None)
        spoken = next((pair for pair in HF_LANGUAGE if name.startswith(pair[0])), None)
        if above is not None:
            tower[name.removeprefix(above)] = tensor
        elif match := HF_PROJECTOR.fullmatch(name):
            mapped[f"{connector}.mlp.{2 * int(match[1]) - 2}.{match[2]}"] = tensor
        elif spoken is not None:
            text[spoken[1] + name.removeprefix(spoken[0])] = tensor
        else:
            rest[name] = tensor
    return mapped | rest | placed(hf_clip_to_vit(tower), vision) | placed(llama_to_llama(text), language)
