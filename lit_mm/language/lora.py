"""Low-rank adaptation of linears of the decoder at every position; partial LoRA acts at visual positions only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from lit_mm.errors import UserError
from lit_mm.language.llama import Llama
from lit_mm.layers.dropout import dropout
from lit_mm.layers.injection import Injection

XCOMPOSER_LINEARS = ("q_proj", "v_proj", "up_proj", "down_proj")


class LoRALinear(nn.Module):
    """y = W x + b + (alpha / rank) B A dropout(x).

    A is kaiming-uniform and B is zero, so a new model computes what its base model does. The release computes the
    branch in fp32 beside a half-precision base. Here the branch follows the trainer's precision, which keeps fp32
    weights if it is mixed.

    Args:
        base: linear to wrap; it stays the same module.
        rank: rank of the branch.
        alpha: scale of the branch times `rank`; None means `rank`, a scale of 1.
        dropout: probability of dropout on the branch's input in training.
    Source: arXiv:2106.09685; class LoRALinear of the XComposer release (modeling_utils.py).
    """

    parts_within: ClassVar[dict[str, str]] = {"lora_a": "lora", "lora_b": "lora"}

    def __init__(self, base: nn.Linear, rank: int, alpha: float | None = None, dropout: float = 0.05) -> None:
        super().__init__()
        like = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.base = base
        self.lora_a = nn.Linear(base.in_features, rank, bias=False, **like)
        self.lora_b = nn.Linear(rank, base.out_features, bias=False, **like)
        nn.init.kaiming_uniform_(self.lora_a.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_b.weight)
        self.rank, self.dropout = rank, dropout
        self.scale = (rank if alpha is None else alpha) / rank

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        branch = self.lora_b(self.lora_a(dropout(x, self.dropout, self.training)))
        return self.base(x) + self.scale * branch

    def extra_repr(self) -> str:
        return f"rank={self.rank}, scale={self.scale:g}, dropout={self.dropout}"


def apply_lora(
    language: Llama,
    rank: int,
    alpha: float | None = None,
    dropout: float = 0.05,
    linears: Sequence[str] = XCOMPOSER_LINEARS,
) -> Llama:
    """Wrap linears of every decoder layer in place; return the same model.

    Args:
        language: decoder to change.
        rank, alpha, dropout: see `LoRALinear`. XComposer: 256, 256, 0.05; 381.7M parameters at 7B size.
        linears: names of linears in a layer's attention and feed-forward. XComposer leaves k_proj, o_proj and gate_proj
            plain.
    Raises:
        UserError: the model is no decoder, the rank is not positive, or a linear does not exist or already has a
            branch.
    """
    if not isinstance(language, Llama):
        raise UserError(f"LoRA wraps the layers of a decoder, got {type(language).__name__}; leave it out")
    if rank < 1:
        raise UserError(f"LoRA needs a `rank` of at least 1, got {rank}; for none, leave LoRA out")
    for layer in language.decoder_layers:
        linears_by_name = {n: (owner, m) for owner in (layer.self_attn, layer.mlp) for n, m in owner.named_children()}
        for name in linears:
            owner, base = linears_by_name.get(name, (layer, None))
            if not isinstance(base, nn.Linear):
                reason = "there is none" if base is None else f"it is a {type(base).__name__}"
                plain = sorted(n for n, (_, module) in linears_by_name.items() if isinstance(module, nn.Linear))
                raise UserError(
                    f"LoRA on {name!r}: expected a plain linear of a decoder layer, {reason}; it has {plain}"
                )
            setattr(owner, name, LoRALinear(base, rank, alpha, dropout))
    return language


@dataclass(frozen=True)
class LoRA(Injection):
    """LoRA as an entry of a recipe. See `apply_lora`.

    Args:
        rank: rank of the branches.
        alpha: scale of the branches times `rank`; None means `rank`, a scale of 1.
        dropout: probability of dropout on the branches' input in training.
        linears: names of linears in a layer's attention and feed-forward.
    """

    rank: int = 256
    alpha: float | None = None
    dropout: float = 0.05
    linears: tuple[str, ...] = XCOMPOSER_LINEARS

    def __call__(self, model: Llama) -> Llama:
        return apply_lora(model, self.rank, self.alpha, self.dropout, self.linears)
