"""The tensors of a model that belong in a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn


def kept_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield (name in `state_dict`, tensor) of a model's parameters and of the buffers that belong to its weights."""
    yield from module.named_parameters()
    yield from kept_buffers(module)


def kept_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield (name in `state_dict`, buffer) of the buffers that belong to a model's weights."""
    names = module.state_dict().keys()
    yield from ((name, buffer) for name, buffer in module.named_buffers() if name in names)
