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
        order: [T] numbers of the text positions, then of the visual ones, both ascending.
        inverse: [T] place of each position in `order`.
    """

    places: Tensor
    mask: Tensor
    order: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, places: Tensor, length: int) -> Routing:
        """Build the routing of a row of `length` positions, without waiting for the device."""
        mask = torch.zeros(length, 1, dtype=torch.bool, device=places.device).index_fill_(0, places, True)
        order = mask[:, 0].to(torch.uint8).argsort(stable=True)
        inverse = torch.empty_like(order).index_copy_(0, order, torch.arange(length, device=order.device))
        return cls(places, mask, order, inverse)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Split a row [1, T, D] into its text [1, T - K, D] and its visual positions [1, K, D]."""
        visual = len(self.places)
        text, image = x.index_select(1, self.order).split([x.shape[1] - visual, visual], dim=1)
        return text, image

    def join(self, text: Tensor, visual: Tensor) -> Tensor:
        """Join text [1, T - K, D] and visual positions [1, K, D] to the row [1, T, D]."""
        return torch.cat([text, visual], dim=1).index_select(1, self.inverse)


class Route:
    """The values that the routed linears of one decoder layer read during its forward.

    Attributes:
        routing: visual positions of the row; None means that every position is text.
        low_rank: [1, K or T, rank] product of a branch shared by several linears (see `partial_lora.py`).
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
