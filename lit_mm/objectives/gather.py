"""Rows of all ranks, with and without gradient, and their numbers per rank."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def gathered_rows(rows: Tensor) -> Tensor:
    """Concatenate the rows [n, ...] of all ranks, in their order; ranks may have different numbers of rows."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, count)
    sizes = [int(number) for number in counts]
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    pieces = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(pieces, padded)
    return torch.cat([piece[:size] for piece, size in zip(pieces, sizes, strict=True)])


def row_counts(rows: Tensor) -> list[int]:
    """Return the number of rows of `rows` [n, ...] on every rank, in the order of the ranks."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [len(rows)]  # without a device tensor, whose values the host would wait for
    return gathered_rows(torch.tensor([len(rows)], device=rows.device)).tolist()


def gathered_texts(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gather the texts of all ranks, which have different lengths.

    Args:
        ids, mask: [n, L] token ids and real positions of this rank.
    Returns:
        ids and mask of this rank, and those of all ranks, all padded to the longest text.
    """
    longest = max(row_counts(ids.T))
    ids, mask = (F.pad(rows, (0, longest - rows.shape[1])) for rows in (ids, mask))
    return ids, mask, gathered_rows(ids), gathered_rows(mask)


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
