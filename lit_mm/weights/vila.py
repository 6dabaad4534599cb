"""These key maps rename VILA checkpoints. VILA-1.0 has the names of LLaVA, VILA-1.5 a folder for each part."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from lit_mm.weights.clip import hf_clip_to_vit
from lit_mm.weights.files import PART_FOLDERS
from lit_mm.weights.internlm2 import llama_to_llama
from lit_mm.weights.llava import State, llava_to_model
from lit_mm.weights.names import add_prefix, below, without
from lit_mm.weights.timm import hf_siglip_to_timm

# layers.0 joins patches and layers.3 is the GELU; neither has parameters
LANGUAGE, PROJECTOR, VISION = (f"{folder}/" for folder in PART_FOLDERS)
LAYER = re.compile(r"layers\.(?:(\d)\.)?(weight|bias)")
DOWNSAMPLE = re.compile(r"(?:model\.mm_projector\.)?layers\.([124])\.(weight|bias)")


def vila_to_model(
    state: Mapping[str, Tensor], *, network: str = "network", decoder: Callable[[State], State] = llama_to_llama
) -> State:
    """Rename a checkpoint of the authors to the model.

    Names `layers.*` belong to the projector of VILA-1.5, either from its folder mm_projector or from a whole model.

    Args:
        network: name prefix of the network in the target model.
        decoder: key map of the language model.
    Source: github.com/NVlabs/VILA eaadb1e, and base_projector.py of branch vila1.5.
    """
    projector: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if match := DOWNSAMPLE.fullmatch(name):
            projector[f"{network}.connector.mlp.{int(match[1]) - 1}.{match[2]}"] = tensor
        else:
            rest[name] = tensor
    places = {part: f"{network}.{part}" for part in ("vision", "connector", "language")}
    return projector | llava_to_model(rest, **places, decoder=decoder)


def vila_folders_to_model(
    state: Mapping[str, Tensor], *, network: str = "network", decoder: Callable[[State], State] = llama_to_llama
) -> State:
    """Rename a checkpoint of folders, whose names start with `llm/`, `mm_projector/` and `vision_tower/`.

    The projector is one linear (`layers.weight`), an MLP (`layers.0.weight`), or that of VILA-1.5, whose `layers.0`
    joins patches. The encoder is CLIP or SigLIP.

    Args:
        network: name prefix of the network in the target model.
        decoder: key map of the language model.
    Source: github.com/NVlabs/VILA branch vila1.5 6b941da, `save_pretrained` of llava_arch.py.
    """
    layers, tower = below(state, PROJECTOR), below(state, VISION)
    first = 1 if "layers.4.weight" in layers else 0  # number of layers that join patches
    projector: dict[str, Tensor] = {}
    for name, tensor in layers.items():
        match = LAYER.fullmatch(name)
        place = f"mlp.{int(match[1] or 0) - first}.{match[2]}" if match else name
        projector[f"{network}.connector.{place}"] = tensor
    is_clip = "vision_model.embeddings.class_embedding" in tower
    vision = (hf_clip_to_vit if is_clip else hf_siglip_to_timm)(tower)
    language = decoder(below(state, LANGUAGE))
    rest = without(state, LANGUAGE, PROJECTOR, VISION)
    return rest | projector | add_prefix(vision, f"{network}.vision") | add_prefix(language, f"{network}.language")
