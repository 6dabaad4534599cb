"""Routed linears: wrappers around a decoder's linears that treat visual positions differently from text.

The route of a batch travels as one keyword argument, `routing`, through the language model to every decoder layer and
on to its attention, where a pre-hook takes it out and stores it in the layer's `Route`. The hook is on the attention
because transformers checkpoints a decoder layer's `forward`: a hook on the layer itself does not run again when the
backward pass recomputes the layer, which would then read the route of another forward. A hook on the attention inside
runs again, with the arguments of its forward.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Routing(NamedTuple):
    """The positions of a flat row of T positions that count as visual.

    Attributes:
        places: [K] numbers of the visual positions, ascending.
        mask: [T, 1] True at visual positions.
    """

    places: Tensor
    mask: Tensor

    @classmethod
    def of(cls, places: Tensor, length: int) -> Routing:
        """Build the routing of a row of `length` positions, without waiting for the device."""
        mask = torch.zeros(length, 1, dtype=torch.bool, device=places.device)
        return cls(places, mask.index_fill_(0, places, True))


class Route:
    """The values that the routed linears of one decoder layer read during its forward.

    Attributes:
        routing: visual positions of the row; None means that every position is text.
        low_rank: [1, T, rank] product of a branch shared by several linears (see `partial_lora.py`).
    """

    def __init__(self) -> None:
        self.routing: Routing | None = None
        self.low_rank: Tensor | None = None


def receive_routing(attention: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Move `routing` from an attention's keyword arguments to its `route`. A pre-hook of the attention.

    It is a plain function that reads the route from the module, so that copies of a model have separate routes.
    """
    kwargs = dict(kwargs)
    attention.route.routing = kwargs.pop("routing", None)
    return args, kwargs
