"""Shares: the elements of a parameter that one rank stores or updates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn


@runtime_checkable
class Sharded(Protocol):
    """A parameter that ZeRO-3 has cut into shards. The parameter itself is empty while no module needs it.

    Attributes:
        ds_tensor: this rank's shard, flat; its `ds_numel` counts the padding too.
        ds_numel: elements of the whole parameter.
        ds_shape: shape of the whole parameter.
    """

    ds_tensor: Any
    ds_numel: int
    ds_shape: torch.Size


@runtime_checkable
class Partitioned(Protocol):
    """A trainable parameter whose optimizer state ZeRO-1 or 2 has cut into partitions."""

    _hp_mapping: Any  # DeepSpeed's record of this rank's fp32 fragment; None if another rank holds all of it


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """Return the shape of a parameter, also while ZeRO-3 keeps only shards of it."""
    return parameter.ds_shape if isinstance(parameter, Sharded) else parameter.shape


@dataclass(frozen=True)
class Share:
    """The elements of a trainable parameter that this rank updates.

    Attributes:
        name: name of the parameter in the module.
        start: index of the first element in the flattened parameter.
        count: number of elements.
        flat: fp32 partition of this rank that contains the elements. It is the key of their optimizer state.
        offset: index of the first element in `flat`.
    """

    name: str
    start: int
    count: int
    flat: Tensor
    offset: int

    def of(self, tensor: Tensor) -> Tensor:
        """Return the share's elements of a tensor that is aligned with `flat`, as a view."""
        return tensor.detach().narrow(0, self.offset, self.count)


def shard(parameter: Sharded) -> tuple[int, int]:
    """(start, count) of this rank's shard of a parameter under ZeRO-3, without its padding."""
    size = parameter.ds_tensor.ds_numel
    start = min(size * dist.get_rank(), parameter.ds_numel)
    return start, min(size, parameter.ds_numel - start)


@contextmanager
def whole(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Gather parameters that ZeRO-3 has cut, to read them in a `with` block; every rank must enter it."""
    # those that a running module has gathered stay with it
    sharded = [parameter for parameter in parameters if isinstance(parameter, Sharded) and not parameter.numel()]
    if not sharded:
        yield
        return
    import deepspeed  # imported late: only sharded parameters need it

    with deepspeed.zero.GatheredParameters(sharded):
        yield


def share_of(parameter: nn.Parameter) -> Tensor | None:
    """Return the elements of a parameter whose values this rank can compare over time.

    Returns:
        The whole parameter, or this rank's shard of it, in fp32 if it is trainable; None if other ranks hold all of it.
    """
    if isinstance(parameter, Sharded):
        if parameter.requires_grad:
            return parameter._z3_optimizer.get_local_fp32_param(parameter)
        return parameter.ds_tensor
    if parameter.requires_grad and isinstance(parameter, Partitioned):
        return None if parameter._hp_mapping is None else parameter._hp_mapping.get_hp_fragment()
    return parameter
