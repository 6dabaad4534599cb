"""Runs that repeat bit for bit."""

from __future__ import annotations

import torch


def use_deterministic_algorithms() -> None:
    """Switch on torch's deterministic algorithms for this process; torch warns of an operation that has none.

    torch would also fill every fresh tensor with NaN. That costs time and changes no result, unless a kernel reads
    memory that was never written, which would be a bug. The filling stays off.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
