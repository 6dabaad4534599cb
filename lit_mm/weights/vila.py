"""This key map renames VILA checkpoints. VILA-1.0 has the names of LLaVA; VILA-1.5 has another projector."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from lit_mm.weights.internlm2 import llama_to_llama
from lit_mm.weights.llava import State, llava_to_model

# layers.0 joins patches and layers.3 is the GELU; neither has parameters
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
