"""These key maps rename LLaVA, LLaVA-1.5 and VILA-1.0 checkpoints in the authors' or in transformers' names.

Unknown keys pass through; `load_strict` reports them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from lit_mm.weights.clip import hf_clip_to_vit
from lit_mm.weights.internlm2 import llama_to_llama
from lit_mm.weights.names import add_prefix

State = dict[str, Tensor]
VISION = "model.vision_tower.vision_tower."
PROJECTOR = "model.mm_projector."
PROJECTOR_PIECE = re.compile(r"(?:(\d+)\.)?(weight|bias)")
LANGUAGE = ("model.embed_tokens.", "model.layers.", "model.norm.", "lm_head.")

# Names in transformers; the later alternatives are those of files from before transformers 5
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
    decoder: Callable[[State], State] = llama_to_llama,
) -> dict[str, Tensor]:
    """Rename a checkpoint of the authors to the model.

    The projector is a linear (`mm_projector.weight`) or an MLP (`mm_projector.0.weight`). Checkpoints without the
    vision encoder, which stays frozen in stage 2, give an incomplete state; load CLIP as well. `mm_projector.bin` of a
    first stage holds the connector alone.

    Args:
        vision, connector, language: name prefixes of the parts in the target model.
        decoder: key map of the language model.
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
    return mapped | rest | add_prefix(hf_clip_to_vit(tower), vision) | add_prefix(decoder(text), language)


def hf_llava_to_model(
    state: Mapping[str, Tensor],
    *,
    vision: str = "network.vision",
    connector: str = "network.connector",
    language: str = "network.language",
    decoder: Callable[[State], State] = llama_to_llama,
) -> dict[str, Tensor]:
    """Rename transformers' LlavaForConditionalGeneration, of version 5 or before, to the model.

    Args:
        vision, connector, language: name prefixes of the parts in the target model.
        decoder: key map of the language model.
    """
    rest: dict[str, Tensor] = {}
    tower: dict[str, Tensor] = {}
    text: dict[str, Tensor] = {}
    mapped: dict[str, Tensor] = {}
    for name, tensor in state.items():
        vision_prefix = next((prefix for prefix in HF_VISION if name.startswith(prefix)), None)
        language_prefixes = next((pair for pair in HF_LANGUAGE if name.startswith(pair[0])), None)
        if vision_prefix is not None:
            tower[name.removeprefix(vision_prefix)] = tensor
        elif match := HF_PROJECTOR.fullmatch(name):
            mapped[f"{connector}.mlp.{2 * int(match[1]) - 2}.{match[2]}"] = tensor
        elif language_prefixes is not None:
            text[language_prefixes[1] + name.removeprefix(language_prefixes[0])] = tensor
        else:
            rest[name] = tensor
    return mapped | rest | add_prefix(hf_clip_to_vit(tower), vision) | add_prefix(decoder(text), language)
