"""These key maps rename LLaVA-NeXT checkpoints: the maps of LLaVA, plus the newline vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from lit_mm.weights.internlm2 import llama_to_llama
from lit_mm.weights.llava import State, hf_llava_to_model, llava_to_model

NEWLINE = ("model.image_newline", "image_newline")  # the second is the name in files from before transformers 5


def llava_next_to_model(
    state: Mapping[str, Tensor], *, network: str = "network", decoder: Callable[[State], State] = llama_to_llama
) -> State:
    """Rename a checkpoint of the authors to the model.

    Args:
        network: name prefix of the network in the target model.
        decoder: key map of the language model.
    """
    return _with_newline(llava_to_model(state, **_places(network), decoder=decoder), network)


def hf_llava_next_to_model(
    state: Mapping[str, Tensor], *, network: str = "network", decoder: Callable[[State], State] = llama_to_llama
) -> State:
    """Rename transformers' LlavaNextForConditionalGeneration, of version 5 or before, to the model.

    Args:
        network: name prefix of the network in the target model.
        decoder: key map of the language model.
    """
    return _with_newline(hf_llava_to_model(state, **_places(network), decoder=decoder), network)


def _places(network: str) -> dict[str, str]:
    return {
        "vision": f"{network}.vision",
        "connector": f"{network}.connector.projector",
        "language": f"{network}.language",
    }


def _with_newline(state: Mapping[str, Tensor], network: str) -> dict[str, Tensor]:
    return {f"{network}.connector.newline" if name in NEWLINE else name: tensor for name, tensor in state.items()}
