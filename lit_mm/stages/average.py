"""The exponential moving average of trained weights, as one more moment of the optimizer.

A moment is sharded, saved and resumed with the others, under every strategy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

AVERAGE = "average"  # name of the moment, and key of the decay in a group


def keep_average(optimizer: Optimizer) -> None:
    """Update the average of the weights after each step of an optimizer, in the groups that have a decay.

    After a step it is `decay * average + (1 - decay) * weight`. It starts at the value before the first step of the
    weight. It enters the state behind that step, because an optimizer builds its moments only in an empty state.

    Args:
        optimizer: optimizer whose groups have the key `average`: the decay, or None for no average.
    """
    if all(group[AVERAGE] is None for group in optimizer.param_groups):
        return
    starts: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def remember(optimizer: Optimizer, *_: Any) -> None:
        for parameter, _decay in averaged(optimizer):
            if AVERAGE not in optimizer.state.get(parameter, {}):
                starts[parameter] = parameter.detach().clone()

    @torch.no_grad()
    def update(optimizer: Optimizer, *_: Any) -> None:
        for parameter, decay in averaged(optimizer):
            state = optimizer.state.get(parameter)
            if state:  # empty for a weight that has not learnt yet
                if AVERAGE not in state:
                    state[AVERAGE] = starts[parameter]
                state[AVERAGE].lerp_(parameter.detach(), 1 - decay)
        starts.clear()

    optimizer.register_step_pre_hook(remember)
    optimizer.register_step_post_hook(update)


def averaged(optimizer: Optimizer) -> Iterator[tuple[Tensor, float]]:
    """Yield (parameter, decay) of all parameters whose average is kept."""
    for group in optimizer.param_groups:
        if group[AVERAGE] is not None:
            yield from ((parameter, group[AVERAGE]) for parameter in group["params"])
