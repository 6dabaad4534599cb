"""Partial LoRA: a low-rank branch on every linear of the decoder, active at visual positions only.

Text positions use the plain weights, so the model treats text alone like the base model, bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lit_mm.errors import UserError
from lit_mm.language.llama import Llama
from lit_mm.language.pretrained import Pretrained
from lit_mm.language.routed import Route, Routing, receive_routing
from lit_mm.layers.dropout import dropout
from lit_mm.layers.injection import Injection

WRAPPED = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
PARTS = {"lora_a": "partial_lora", "lora_b": "partial_lora"}  # attribute -> part


def visual_alone(x: Tensor) -> bool:
    """Return True where a branch runs at the visual positions alone: on a CPU, where products cost more than copies.

    Elsewhere, and in compiled layers, it runs at all positions, so shapes depend on the length of the row alone. The
    meta device, on which operations are planned, counts the visual positions: the others are not work, but its price.
    """
    return x.device.type in ("cpu", "meta") and not torch.compiler.is_compiling()


def low_rank_input(x: Tensor, routing: Routing, p: float, training: bool) -> Tensor:
    """Compute the input of a branch, with dropout of probability p.

    Where the branch runs at all positions, text positions are zero. It uses `where` and not a product, so that a NaN
    at a text position becomes zero, too.

    Args:
        x: [1, T, in] input of the linear.
    Returns:
        [1, K, in] where `visual_alone(x)`, else [1, T, in].
    """
    if visual_alone(x):
        return dropout(x.index_select(1, routing.places), p, training)
    return dropout(torch.where(routing.mask, x, 0), p, training)


class PartialLoRALinear(nn.Module):
    """y = W x + b, plus (alpha / rank) B A dropout(x) at the positions that `route` flags as visual.

    On a GPU the branch runs at all positions of the row, and its input is zero at text positions; on a CPU it runs at
    the visual positions alone (see `visual_alone`). The host never waits for the device. Text positions keep the bits
    of the base linear, and no value of theirs, not even a NaN, reaches A and B. A batch without visual positions gives
    A and B zero gradients, not missing ones, as distributed training needs (the release runs the branch on the first
    token, times 0).

    A is kaiming-uniform and B is zero, so a new model computes what its base model does. The release intends the same,
    but its initialiser looks for `lora_A` and `lora_B` and the layers are called `Plora_A` and `Plora_B`, so both are
    drawn from N(0, 0.02).

    Args:
        base: linear to wrap; it stays the same module.
        rank: rank of the branch.
        alpha: scale of the branch times `rank`; None means `rank`, a scale of 1.
        dropout: probability of dropout on the branch's input in training.
        route: route of the layer, which holds its routing; None creates a route that the caller sets.
        shared: True reads A x from `route.low_rank`; the module then has no A (see `apply_partial_lora`).
    Source: arXiv:2401.16420, section 3.2, equation 1; class PLoRA of the release.
    """

    parts_within: ClassVar[dict[str, str]] = PARTS

    def __init__(
        self,
        base: nn.Linear,
        rank: int,
        alpha: float | None = None,
        dropout: float = 0.05,
        *,
        route: Route | None = None,
        shared: bool = False,
    ) -> None:
        super().__init__()
        self.base = base
        self.lora_a = None if shared else new_down(base, rank)
        self.lora_b = nn.Linear(rank, base.out_features, bias=False, **like(base))
        nn.init.zeros_(self.lora_b.weight)
        self.rank, self.dropout = rank, dropout
        self.scale = (rank if alpha is None else alpha) / rank
        self.route = Route() if route is None else route

    def forward(self, x: Tensor) -> Tensor:
        """[1, T, in] -> [1, T, out]."""
        y = self.base(x)
        routing = self.route.routing
        if routing is None:
            return y
        low = self.route.low_rank
        if self.lora_a is not None:
            low = self.lora_a(low_rank_input(x, routing, self.dropout, self.training))
        delta = self.lora_b(low).to(y.dtype)  # [1, K, out] or [1, T, out]
        # out of place, because under ZeRO-3 the base linear's output is a view that must not be written to
        if visual_alone(x):
            return y.index_add(1, routing.places, delta, alpha=self.scale)
        return torch.add(y, delta, alpha=self.scale)

    def extra_repr(self) -> str:
        return f"rank={self.rank}, scale={self.scale:g}, dropout={self.dropout}"


def new_down(base: nn.Linear, rank: int) -> nn.Linear:
    """Create an A [rank, in] for `base`, on its device and in its dtype."""
    down = nn.Linear(base.in_features, rank, bias=False, **like(base))
    nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
    return down


def like(base: nn.Linear) -> dict[str, torch.device | torch.dtype]:
    return {"device": base.weight.device, "dtype": base.weight.dtype}


def share_low_rank(attention: nn.Module, args: tuple, kwargs: dict) -> None:
    """Compute A x once, with one dropout mask, for q, k and v, as in the packed release. A pre-hook of attention."""
    routing = attention.route.routing
    if routing is None:
        return
    x = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    of_branch = low_rank_input(x, routing, attention.q_proj.dropout, attention.training)
    attention.route.low_rank = attention.lora_a(of_branch)


def forget_low_rank(attention: nn.Module, args: tuple, output: object) -> None:
    """Release the shared product, which holds the graph of the whole forward. A forward hook of the attention."""
    attention.route.low_rank = None


def apply_partial_lora(
    language: Llama | Pretrained, rank: int, alpha: float | None = None, dropout: float = 0.05
) -> Llama | Pretrained:
    """Wrap the linears of every decoder layer in place; return the same model.

    The release wraps five linears: wqkv, wo, w1, w3, w2. Its packed wqkv has one A, so here q, k and v share one A
    (`lora_a` of the attention) and each has a B, a slice of the packed B. Function and parameters are the same: 18.87M
    a layer and 604.0M in all at rank 256 and 7B size. Embeddings and the output projection stay plain.

    Args:
        language: decoder to change.
        rank, alpha, dropout: see `PartialLoRALinear`. Published: 256, 256, 0.05.
    Raises:
        UserError: the model is no decoder, its layers lack a linear, the rank is not positive, or the model already has
            partial LoRA.
    Source: arXiv:2401.16420, section 3.2; modeling_internlm2.py of the release.
    """
    if not isinstance(language, Llama | Pretrained):
        raise UserError(f"partial LoRA needs a decoder, got {type(language).__name__}. Leave it out")
    if rank < 1:
        raise UserError(
            f"partial LoRA needs a `rank` of at least 1, got {rank}. To train without it, leave partial LoRA out"
        )
    if language.routed:
        raise UserError("the linear layers of this language model are already routed. Apply partial LoRA only once")
    for layer in language.decoder_layers:
        linears = {name for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
        if missing := [name for name in WRAPPED if name not in linears]:
            raise UserError(
                f"partial LoRA wraps {list(WRAPPED)} of a decoder layer; the layers of this language model have no "
                f"plain linears {missing}. Leave partial LoRA out, or take a decoder of Llama's kind"
            )
        attention, route = layer.self_attn, Route()
        attention.route = route
        attention.lora_a = new_down(attention.q_proj, rank)
        attention.parts_within = PARTS
        for owner, names, shared in (
            (attention, ("q_proj", "k_proj", "v_proj"), True),
            (attention, ("o_proj",), False),
            (layer.mlp, ("gate_proj", "up_proj", "down_proj"), False),
        ):
            for name in names:
                base = owner.get_submodule(name)
                setattr(owner, name, PartialLoRALinear(base, rank, alpha, dropout, route=route, shared=shared))
        attention.register_forward_pre_hook(receive_routing, with_kwargs=True)
        attention.register_forward_pre_hook(share_low_rank, with_kwargs=True)
        attention.register_forward_hook(forget_low_rank)
    language.routed = True
    return language


@dataclass(frozen=True)
class PartialLoRA(Injection):
    """Partial LoRA as an entry of a recipe. See `apply_partial_lora`.

    Args:
        rank: rank of the branches.
        alpha: scale of the branches times `rank`; None means `rank`, a scale of 1.
        dropout: probability of dropout on the branches' input in training.
    """

    rank: int = 256
    alpha: float | None = None
    dropout: float = 0.05

    def __call__(self, model: Llama | Pretrained) -> Llama | Pretrained:
        return apply_partial_lora(model, self.rank, self.alpha, self.dropout)
