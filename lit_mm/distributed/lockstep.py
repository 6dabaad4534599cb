"""Ranks that share one sharded model must call its modules the same number of times: each call is a collective."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lit_mm.distributed.shares import Sharded


def is_shared(network: nn.Module) -> bool:
    """Return True if the ranks hold shards of this model (ZeRO-3), so that a forward needs all ranks."""
    return dist.is_initialized() and any(isinstance(parameter, Sharded) for parameter in network.parameters())


def all_done(ended: Tensor, network: nn.Module) -> bool:
    """Return True if every entry of `ended` is True, on every rank that a forward of the network needs.

    Ranks may answer different documents. On unlike devices even answers to the same document may differ in length.
    """
    if not is_shared(network):
        return bool(ended.all())
    left = (~ended).sum()
    dist.all_reduce(left)
    return not left.item()


def as_call(module: nn.Module, method: Callable[[], Tensor]) -> Tensor:
    """Run a method of a module without arguments as a call of the module.

    ZeRO-3 gathers the parameters of a module around its call. In training it also gathers those that are read outside
    of their module's call, but not in evaluation.

    Args:
        module: module whose parameters the method reads.
        method: bound method of the module.
    """
    if torch.is_grad_enabled():
        return method()
    module.forward = method
    try:
        return module()
    finally:
        del module.forward
