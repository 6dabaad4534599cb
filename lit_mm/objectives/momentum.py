"""Momentum copies of encoders: slowly moving averages of their weights, held in buffers."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lit_mm.distributed.shares import whole


class Momentum(nn.Module):
    """Copies of modules whose weights follow the originals as exponential averages.

    All tensors are buffers: no optimizer, gradient or shard touches them, and checkpoints hold them. The first update
    copies the originals, so that copies of loaded weights start equal. The copies run in evaluation mode, without
    dropout; the authors' copies have dropout.

    Args:
        rate: share of a copy that stays in an update.
        modules: name -> module to copy, which must have the same structure at every update.
    Attributes:
        copies: name -> copy.
        updates: [1] number of updates.
    Source: arXiv:2107.07651, section 3.2 (ALBEF); BLIP has a rate of 0.995.
    """

    updates: Tensor

    def __init__(self, rate: float, **modules: nn.Module) -> None:
        super().__init__()
        self.rate = rate
        for name, module in modules.items():
            self.add_module(name, as_buffers(copy.deepcopy(module)))
        self.register_buffer("updates", torch.zeros(1, dtype=torch.int64))

    @torch.no_grad()
    def update(self, **modules: nn.Module) -> None:
        """Move every copy towards its original: copy = rate x copy + (1 - rate) x original.

        Args:
            modules: name -> original of the copy of this name.
        """
        weight = 1 - self.rate * (self.updates > 0).float()[0]  # 1: the first update copies
        for name, module in modules.items():
            averages = dict(self.get_submodule(name).named_buffers())
            parameters = {key: value for key, value in module.named_parameters() if key in averages}
            with whole(parameters.values()):
                for parameter_name, parameter in parameters.items():
                    average = averages[parameter_name]
                    average.lerp_(parameter.to(average), weight.to(average))
        self.updates += 1


def as_buffers(module: nn.Module) -> nn.Module:
    """Turn all parameters of a module, in place, into fp32 buffers that are saved with it."""
    for inner in module.modules():
        for name, parameter in list(inner.named_parameters(recurse=False)):
            delattr(inner, name)
            inner.register_buffer(name, parameter.detach().float().clone())
    return module.eval()
