"""LLaVA-UHD checkpoints -> our model's names: LLaVA's, with a resampler in place of the projector."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lit_mm.weights.llava import PROJECTOR, llava_to_model
from lit_mm.weights.qwen_vl import qwen_pool_to_resampler

NORM, MATRIX = "ln_post.", "proj"


def slice_resampler(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The released resampler's names, of either version -> `SliceResampler`.

    Qwen-VL's resampler, a norm and a matrix that features are multiplied by from the left. The fixed table of positions
    is left out: it is recomputed.
    """
    pool = {name: tensor for name, tensor in state.items() if name != MATRIX and not name.startswith(NORM)}
    ours = qwen_pool_to_resampler(pool)
    ours.pop("positions", None)
    ours |= {f"norm.{name.removeprefix(NORM)}": tensor for name, tensor in state.items() if name.startswith(NORM)}
    return ours | ({"proj.weight": state[MATRIX].T.contiguous()} if MATRIX in state else {})


def llava_uhd_to_model(state: Mapping[str, Tensor], *, network: str = "network") -> dict[str, Tensor]:
    """The authors' names -> ours. What no map knows is handed on unchanged, so that `load_strict` names it.

    Args:
        network: where the parts sit in the model to be loaded.
    Source: github.com/thunlp/LLaVA-UHD, branch LLaVA-UHD-v1 dd7f6cc.
    """
    resampler = {n.removeprefix(PROJECTOR): tensor for n, tensor in state.items() if n.startswith(PROJECTOR)}
    rest = {name: tensor for name, tensor in state.items() if not name.startswith(PROJECTOR)}
    ours = {f"{network}.connector.{name}": tensor for name, tensor in slice_resampler(resampler).items()}
    return ours | llava_to_model(rest, **{part: f"{network}.{part}" for part in ("vision", "connector", "language")})
