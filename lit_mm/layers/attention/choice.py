"""The choice of the backend that computes attention over a flat row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch
from lightning.pytorch.utilities import rank_zero_info

from lit_mm.errors import UserError

Backend = Literal["auto", "varlen", "segments"]
HAS_VARLEN = find_spec("torch.nn.attention.varlen") is not None
logged_obstacles: set[str] = set()  # reasons that this process has logged


@dataclass(frozen=True)
class Demand:
    """The properties of a call that decide which backends can compute it.

    Attributes:
        device: device of the operands.
        dtype: dtype of the products, autocast considered.
        head_width: channels of one head.
        bias: True if a bias is added to the scores.
        dropout: True if attention weights are dropped.
        softcap: True if scores are bounded.
    """

    device: torch.device
    dtype: torch.dtype
    head_width: int
    bias: bool = False
    dropout: bool = False
    softcap: bool = False


def varlen_obstacle(demand: Demand) -> str | None:
    """Return the reason why `torch.nn.attention.varlen` cannot compute a call; None if it can.

    It can compute windows and grouped heads. Meta tensors pass, so that shapes can be checked without a GPU.
    """
    obstacles: tuple[tuple[bool, Callable[[], str]], ...] = (
        (not HAS_VARLEN, lambda: f"torch {torch.__version__} has no torch.nn.attention.varlen"),
        (demand.device.type not in ("cuda", "meta"), lambda: f"it needs a CUDA device, got {demand.device.type}"),
        (demand.dtype not in (torch.bfloat16, torch.float16), lambda: f"it needs bf16 or fp16, got {demand.dtype}"),
        (demand.head_width % 8 != 0, lambda: f"a head's width must be a multiple of 8, got {demand.head_width}"),
        (demand.head_width > 256, lambda: f"a head has at most 256 channels, got {demand.head_width}"),
        (demand.bias, lambda: "it takes no bias on the scores"),
        (demand.dropout, lambda: "it takes no dropout of attention weights"),
        (demand.softcap, lambda: "it takes no soft cap of the scores"),
    )
    for applies, reason in obstacles:
        if applies:
            return reason()
    if demand.device.type == "cuda" and (capability := compute_capability(demand.device.index)) < (8, 0):
        return f"its kernels need compute capability 8.0, got {capability[0]}.{capability[1]}"
    return None


def choose(backend: Backend, demand: Demand) -> Literal["varlen", "segments"]:
    """Choose the backend of a call.

    `auto` takes varlen on a CUDA device if varlen can compute the call. Otherwise it takes the loop over segments,
    which can compute every call, and logs the reason once.

    Raises:
        UserError: `varlen` is forced where it cannot compute the call.
    """
    if backend == "segments":
        return "segments"
    if backend == "auto" and demand.device.type != "cuda":
        return "segments"
    obstacle = varlen_obstacle(demand)
    if obstacle is None:
        return "varlen"
    if backend == "varlen":
        raise UserError(f"`attention: varlen` cannot compute this attention: {obstacle}. Use `attention: auto`")
    log_fallback(obstacle)
    return "segments"


@torch.compiler.assume_constant_result
def log_fallback(obstacle: str) -> None:
    """Log once per reason that attention runs segment by segment."""
    if obstacle not in logged_obstacles:
        logged_obstacles.add(obstacle)
        rank_zero_info(f"attention runs segment by segment, without the varlen kernel: {obstacle}")


@torch.compiler.assume_constant_result
def compute_capability(index: int | None) -> tuple[int, int]:
    """Return (major, minor) of a CUDA device; the index None is the current device."""
    return torch.cuda.get_device_capability(index)
