"""Rows of all ranks, with and without gradient; ranks may have different numbers of rows."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def is_spread() -> bool:
    """True if there are several ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def row_counts(rows: Tensor) -> list[int]:
    """Number of rows of `rows` [n, ...] on every rank, in the order of the ranks."""
    if not is_spread():
        return [len(rows)]
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, count)
    return [int(number) for number in counts]


def total(value: Tensor) -> Tensor:
    """Sum a tensor over the ranks, without gradient."""
    value = value.detach().clone()
    if is_spread():
        dist.all_reduce(value)
    return value


def gathered(rows: Tensor, counts: list[int]) -> Tensor:
    """Concatenate the rows [n, ...] of all ranks in their order, without gradient.

    Args:
        rows: rows of this rank.
        counts: see `row_counts`.
    """
    rows = rows.detach()
    if not is_spread():
        return rows
    padded = _padded(rows, max(counts)).contiguous()
    pieces = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(pieces, padded)
    return torch.cat([piece[:count] for piece, count in zip(pieces, counts, strict=True)])


def gathered_with_gradient(rows: Tensor, counts: list[int]) -> Tensor:
    """Concatenate the rows [n, ...] of all ranks in their order. Gradients of all ranks reach the rank of each row."""
    if not is_spread():
        return rows
    start = sum(counts[: dist.get_rank()])
    return _Gathered.apply(rows, counts, start)


class _Gathered(torch.autograd.Function):
    """All rows forward; backward sums the gradients of all ranks and returns the share of this rank's rows."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, rows: Tensor, counts: list[int], start: int) -> Tensor:
        ctx.place = (start, len(rows))  # pyrefly: ignore[missing-attribute]
        return gathered(rows, counts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradients[0].contiguous().clone()
        dist.all_reduce(gradient)
        start, count = ctx.place  # pyrefly: ignore[missing-attribute]
        return gradient[start : start + count], None, None


def _padded(rows: Tensor, count: int) -> Tensor:
    """[n, ...] -> [count, ...], with zeros behind the rows."""
    return torch.cat([rows, rows.new_zeros(count - len(rows), *rows.shape[1:])])
