"""`trainer.precision: auto`: the precision in which a machine is fast."""

from __future__ import annotations

from typing import Literal

import lightning as L
import torch
from lightning.fabric.connector import _PRECISION_INPUT, _convert_precision_to_unified_args

from lit_mm.layers.hardware import fast_bf16


def best_precision(accelerator: str) -> str:
    """Return the precision that `auto` stands for: bf16-mixed if the hardware multiplies bf16, else 32-true.

    Args:
        accelerator: argument `accelerator` of the Trainer; "auto" is the best device of the machine.
    """
    if accelerator in ("auto", "gpu"):
        accelerator = "cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu"
    return "bf16-mixed" if fast_bf16(accelerator) else "32-true"


def resolved(precision: _PRECISION_INPUT | Literal["auto"] | None, accelerator: str) -> str:
    """Return the precision Lightning will use, such as 32-true."""
    name = best_precision(accelerator) if precision == "auto" else precision
    return _convert_precision_to_unified_args(name) or "32-true"


class Trainer(L.Trainer):
    """Lightning's Trainer with one more precision, `auto`.

    Args:
        precision: a precision of Lightning, or auto: bf16-mixed if the hardware multiplies bf16, else 32-true.
        kwargs: further arguments of Lightning's Trainer.
    """

    def __init__(self, *, precision: _PRECISION_INPUT | Literal["auto"] | None = None, **kwargs) -> None:
        if precision == "auto":
            precision = best_precision(kwargs.get("accelerator", "auto"))
        super().__init__(precision=precision, **kwargs)
