"""Routed linears: wrappers around a decoder's linears that treat visual positions differently from text.

The route of a batch travels as one keyword argument, `routing`, through the language model to every decoder layer and
on to its attention, where a pre-hook takes it out and leaves it in the layer's `Route`. Why there: transformers
checkpoints a decoder layer's `forward`, so a hook on the layer itself does not run again when the backward pass
recomputes it, and the route of another forward would be read. A hook on the attention inside it does run again, with
the arguments of its own forward.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Routing(NamedTuple):
    """The positions of a flat row of T positions that count as visual.

    Attributes:
        places: [K] numbers of these positions, ascending.
        mask: [T, 1] True at these positions.
    """

    places: Tensor
    mask: Tensor

    @classmethod
    def of(cls, places: Tensor, length: int) -> Routing:
        """The routing of a row of `length` positions; no device is waited for."""
        mask = torch.zeros(length, 1, dtype=torch.bool, device=places.device)
        return cls(places, mask.index_fill_(0, places, True))


class Route:
    """What the routed linears of one decoder layer read during its forward.

    Attributes:
        routing: visual positions of the row; None: every position is text.
        low_rank: [1, T, rank] product of a branch shared by several linears (see `partial_lora.py`).
    """

    def __init__(self) -> None:
        self.routing: Routing | None = None
        self.low_rank: Tensor | None = None


def receive_routing(attention: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Pre-hook (with keyword arguments) of an attention that owns a `route`: take `routing` out of its arguments.

    A plain function that asks the module for its route, so that copies of a model keep theirs apart.
    """
    kwargs = dict(kwargs)
    attention.route.routing = kwargs.pop("routing", None)
    return args, kwargs
