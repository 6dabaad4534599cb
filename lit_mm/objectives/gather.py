"""Rows of all ranks with gradient, and their numbers per rank."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from lit_mm.objectives.queue import gathered_rows


def row_counts(rows: Tensor) -> list[int]:
    """Number of rows of `rows` [n, ...] on every rank, in the order of the ranks."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [len(rows)]  # without a device tensor, whose values the host would wait for
    return gathered_rows(torch.tensor([len(rows)], device=rows.device)).tolist()


def gathered_with_gradient(rows: Tensor, counts: list[int]) -> Tensor:
    """Concatenate the rows [n, ...] of all ranks in their order. Gradients of all ranks reach the rank of each row.

    Args:
        rows: rows of this rank.
        counts: see `row_counts`.
    """
    if len(counts) == 1:
        return rows
    return _Gathered.apply(rows, sum(counts[: dist.get_rank()]))


class _Gathered(torch.autograd.Function):
    """All rows forward; backward sums the gradients of all ranks and returns the share of this rank's rows."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, rows: Tensor, start: int) -> Tensor:
        ctx.place = (start, len(rows))  # pyrefly: ignore[missing-attribute]
        return gathered_rows(rows.detach())

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].contiguous().clone()
        dist.all_reduce(gradient)
        start, count = ctx.place  # pyrefly: ignore[missing-attribute]
        return gradient[start : start + count], None
