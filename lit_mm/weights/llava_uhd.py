"""These key maps rename LLaVA-UHD checkpoints: the maps of LLaVA, with a resampler in place of the projector."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from lit_mm.weights.internlm2 import llama_to_llama
from lit_mm.weights.llava import PROJECTOR, State, llava_to_model
from lit_mm.weights.names import add_prefix, below, without
from lit_mm.weights.qwen_vl import NORM, qwen_pool_to_resampler


def slice_resampler(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the released resampler, of either version, to `SliceResampler`.

    The release consists of Qwen-VL's resampler, a norm, and a matrix that multiplies features from the right (it is
    transposed here into a linear). The fixed table of positions is dropped, because it is recomputed.
    """
    pool = without(state, NORM)
    matrix = pool.pop("proj", None)
    mapped = add_prefix(below(state, NORM), "norm") | qwen_pool_to_resampler(pool)
    mapped.pop("positions", None)
    return mapped | ({} if matrix is None else {"proj.weight": matrix.T.contiguous()})


def llava_uhd_to_model(
    state: Mapping[str, Tensor], *, network: str = "network", decoder: Callable[[State], State] = llama_to_llama
) -> State:
    """Rename a checkpoint of the authors to the model. Unknown keys pass through; `load_strict` reports them.

    Args:
        network: name prefix of the network in the target model.
        decoder: key map of the language model.
    Source: github.com/thunlp/LLaVA-UHD, branch LLaVA-UHD-v1 dd7f6cc.
    """
    mapped = add_prefix(slice_resampler(below(state, PROJECTOR)), f"{network}.connector")
    rest = without(state, PROJECTOR)
    places = {part: f"{network}.{part}" for part in ("vision", "connector", "language")}
    return mapped | llava_to_model(rest, **places, decoder=decoder)
