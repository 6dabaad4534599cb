"""LLaVA-UHD checkpoints -> our model's names: LLaVA's, with a resampler in place of the projector."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lit_mm.weights.llava import PROJECTOR, llava_to_model
from lit_mm.weights.names import below, placed, without
from lit_mm.weights.qwen_vl import NORM, qwen_pool_to_resampler


def slice_resampler(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The released resampler's names, of either version -> `SliceResampler`.

    Qwen-VL's resampler, a norm and a matrix that features are multiplied by from the left. The fixed table of positions
    is left out: it is recomputed.
    """
    pool = without(state, NORM)
    matrix = pool.pop("proj", None)
    mapped = placed(below(state, NORM), "norm") | qwen_pool_to_resampler(pool)
    mapped.pop("positions", None)
    return mapped | ({} if matrix is None else {"proj.weight": matrix.T.contiguous()})


def llava_uhd_to_model(state: Mapping[str, Tensor], *, network: str = "network") -> dict[str, Tensor]:
    """The authors' names -> ours. What no map knows is handed on unchanged, so that `load_strict` names it.

    Args:
        network: where the parts sit in the model to be loaded.
    Source: github.com/thunlp/LLaVA-UHD, branch LLaVA-UHD-v1 dd7f6cc.
    """
    mapped = placed(slice_resampler(below(state, PROJECTOR)), f"{network}.connector")
    rest = without(state, PROJECTOR)
    return mapped | llava_to_model(rest, **{part: f"{network}.{part}" for part in ("vision", "connector", "language")})
