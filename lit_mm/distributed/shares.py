"""The elements of a parameter that one rank holds or updates."""

from __future__ import annotations

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
    """The shape of a parameter, also while ZeRO-3 keeps only shards of it."""
    return parameter.ds_shape if isinstance(parameter, Sharded) else parameter.shape


@dataclass(frozen=True)
class Share:
    """The elements of a trainable parameter that this rank updates.

    Attributes:
        name: of the parameter in the module.
        start: place of the first element in the flattened parameter.
        count: elements.
        flat: the rank's fp32 partition that they are part of; the key of their optimizer state.
        offset: their place in it.
    """

    name: str
    start: int
    count: int
    flat: Tensor
    offset: int

    def of(self, tensor: Tensor) -> Tensor:
        """The share's part of a tensor that runs along `flat`, a view."""
        return tensor.detach().narrow(0, self.offset, self.count)


def shard(parameter: Sharded) -> tuple[int, int]:
    """(start, count) of this rank's shard of a parameter under ZeRO-3, without its padding."""
    size = parameter.ds_tensor.ds_numel
    start = min(size * dist.get_rank(), parameter.ds_numel)
    return start, min(size, parameter.ds_numel - start)


def share_of(parameter: nn.Parameter) -> Tensor | None:
    """What this rank holds of a parameter and can be compared over time: the whole, or its shard, fp32 if trainable.

    None where another rank holds all of it.
    """
    if isinstance(parameter, Sharded):
        if parameter.requires_grad:
            return parameter._z3_optimizer.get_local_fp32_param(parameter)
        return parameter.ds_tensor
    if parameter.requires_grad and isinstance(parameter, Partitioned):
        return None if parameter._hp_mapping is None else parameter._hp_mapping.get_hp_fragment()
    return parameter
