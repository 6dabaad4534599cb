"""Dropout with random numbers that are cheap on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 1 << 16


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """Zero each element with probability p and divide the rest by 1 - p, while training.

    A CPU draws random numbers one after the other, on one core: torch's dropout takes a tenth of a nano step with
    partial LoRA. On a CPU, one draw of 64 bits therefore serves four elements, and p is rounded to a 65,536th, in the
    mask and in the scale. On a GPU, and in compiled layers, this is torch's dropout.

    Args:
        x: tensor of any shape.
        p: probability in [0, 1).
        training: False returns `x`.
    """
    if not training or not p or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p, training)
    dropped = min(max(round(p * LEVELS), 1), LEVELS - 1)
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)  # all 64 bits
    mask = draws.view(torch.int16)[: x.numel()].ge_(dropped - LEVELS // 2)  # 0 or 1; bool would be slower to convert
    return x * mask.view(x.shape).to(x.dtype).mul_(LEVELS / (LEVELS - dropped))
