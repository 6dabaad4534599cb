"""Which of a model's tensors a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn


def kept_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A model's parameters and the buffers that belong to its weights, each once, by their names in `state_dict`."""
    yield from module.named_parameters()
    yield from kept_buffers(module)


def kept_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers that belong to a model's weights."""
    names = module.state_dict().keys()
    yield from ((name, buffer) for name, buffer in module.named_buffers() if name in names)
