"""The visual expert: a second set of weights in every layer of a decoder, for visual positions alone.

Text positions use the base weights alone, so the model treats text like the base model, bit for bit.
"""

from __future__ import annotations

from collections.abc import Collection
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lit_mm.errors import UserError
from lit_mm.language.llama import Llama
from lit_mm.language.routed import Route, receive_routing
from lit_mm.layers.injection import Injection

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj")


class Expert(nn.Module):
    """A module that acts on text positions, and a second one of the same shape that acts on visual positions.

    The row is divided by its positions, each module reads its share, and the results are joined in the old order. So no
    position is computed twice. All shapes follow from the length of the row and the number of visual positions, which
    the host knows. Both modules run even if their share is empty: gradients are then zero, not missing, as distributed
    training needs.

    The expert starts as a copy of the base, and becomes one again when a checkpoint fills the base alone.

    Args:
        base: module of text positions, a linear or a feed-forward; it stays the same module.
        route: route of the layer, which holds its routing.
    Source: arXiv:2311.03079, section 2.1, equations 2 to 4; utils/models/mixin.py of the release.
    """

    parts_within: ClassVar[dict[str, str]] = {"expert": "visual_expert"}

    def __init__(self, base: nn.Module, route: Route) -> None:
        super().__init__()
        self.base, self.expert = base, deepcopy(base)
        self.route = route

    def forward(self, x: Tensor) -> Tensor:
        """[1, T, in] -> [1, T, out]."""
        routing = self.route.routing
        if routing is None:
            return self.base(x)
        text, visual = routing.split(x)
        return routing.join(self.base(text), self.expert(visual))

    @torch.no_grad()
    def after_load(self, loaded: Collection[str]) -> None:
        """Copy base parameters that a checkpoint has filled to expert parameters that it has not."""
        base = dict(self.base.named_parameters())
        for name, parameter in self.expert.named_parameters():
            if f"base.{name}" in loaded and f"expert.{name}" not in loaded:
                parameter.copy_(base[name])


def apply_visual_expert(language: Llama) -> Llama:
    """Give every decoder layer an expert for q, k, v, the attention's output and the whole feed-forward, in place.

    Norms, embeddings and the output projection are shared. At 7B size the experts have 6.476B parameters. The paper
    lists q, k, v and the feed-forward alone; the release also has an expert for the output linear, and its count of
    6.5B includes it.

    Args:
        language: decoder to change, which is returned.
    Raises:
        UserError: the model is no decoder, or its linears are routed already.
    Source: arXiv:2311.03079, section 2.1; utils/models/mixin.py of the release.
    """
    if not isinstance(language, Llama):
        raise UserError(f"a visual expert needs a decoder, got {type(language).__name__}. Leave it out")
    if language.routed:
        raise UserError("the linear layers of this language model are already routed. Apply only one visual expert")
    for layer in language.decoder_layers:
        attention, route = layer.self_attn, Route()
        attention.route = route
        for name in LINEARS:
            setattr(attention, name, Expert(attention.get_submodule(name), route))
        layer.mlp = Expert(layer.mlp, route)
        attention.register_forward_pre_hook(receive_routing, with_kwargs=True)
    language.routed = True
    return language


@dataclass(frozen=True)
class VisualExpert(Injection):
    """The visual expert as an entry of a recipe. See `apply_visual_expert`."""

    def __call__(self, model: Llama) -> Llama:
        return apply_visual_expert(model)
