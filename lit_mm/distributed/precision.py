"""Which arithmetic a machine is fast in, and the Trainer whose `precision: auto` means that one."""

from __future__ import annotations

from typing import Literal

import lightning as L
import torch
from lightning.fabric.connector import _PRECISION_INPUT, _convert_precision_to_unified_args

from lit_mm.layers.hardware import fast_bf16


def best_precision(accelerator: str) -> str:
    """What `trainer.precision: auto` means: bf16-mixed where the hardware multiplies in bf16, else 32-true.

    Args:
        accelerator: as the Trainer takes it; "auto" is what the machine has.
    """
    if accelerator in ("auto", "gpu"):
        accelerator = "cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu"
    return "bf16-mixed" if fast_bf16(accelerator) else "32-true"


def resolved(precision: _PRECISION_INPUT | Literal["auto"] | None, accelerator: str) -> str:
    """The precision Lightning will use, such as 32-true."""
    name = best_precision(accelerator) if precision == "auto" else precision
    return _convert_precision_to_unified_args(name) or "32-true"


class Trainer(L.Trainer):
    """Lightning's Trainer, and one more precision.

    Args:
        precision: as Lightning's; auto is bf16-mixed where the hardware multiplies in bf16, else 32-true.
    """

    def __init__(self, *, precision: _PRECISION_INPUT | Literal["auto"] | None = None, **kwargs) -> None:
        if precision == "auto":
            precision = best_precision(kwargs.get("accelerator", "auto"))
        super().__init__(precision=precision, **kwargs)
