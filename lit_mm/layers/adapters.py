"""Low-rank adapters of peft on the linears of a part: LoRA, rsLoRA and DoRA.

The functions import peft themselves, because all families import this module and few recipes have adapters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from lit_mm.errors import UserError
from lit_mm.layers.activations import outer_layers
from lit_mm.layers.injection import Injection
from lit_mm.layers.protocols import parts_within

Kind = Literal["lora", "rslora", "dora"]
Targets = Literal["all-linear"] | Sequence[str]
NAME = "default"  # peft's name of the adapter, which is a piece of the names of its parameters
PIECES = ("lora_A", "lora_B", "lora_dropout", "lora_magnitude_vector")  # attributes of peft's layer; base_layer is not


def add_adapters(
    module: nn.Module,
    part: str,
    *,
    kind: Kind = "lora",
    rank: int,
    alpha: float | None = None,
    dropout: float = 0.0,
    targets: Targets = "all-linear",
) -> int:
    """Wrap linears of a module in peft's LoRA, in place; return their number.

    y = W x + b + s B A dropout(x), with s = alpha / rank (LoRA, DoRA) or alpha / sqrt(rank) (rsLoRA). DoRA also learns
    the norm of each row of W + s B A. A is kaiming-uniform and B is zero, so a new adapter changes nothing. Call it
    after the weights are loaded: DoRA starts at their norms.

    Args:
        module: module whose layers are wrapped. A module without layers, such as a connector, is wrapped whole.
        part: name of the part that the adapters' parameters form.
        kind: "lora", "rslora" or "dora".
        rank: rank of the branches.
        alpha: numerator of s; None means `rank`.
        dropout: probability of dropout on the input of a branch in training.
        targets: "all-linear", every linear of the layers, or names in the paths of linears, such as [q_proj, v_proj].
            Embeddings and vocabulary heads are in no layer.
    Raises:
        UserError: the rank is not positive, or a target names no linear that is free of adapters.
    Source: arXiv:2106.09685, arXiv:2312.03732, arXiv:2402.09353.
    """
    from peft.tuners.lora import Linear, LoraConfig

    if rank < 1:
        raise UserError(f"the adapter {part!r}: `rank` is at least 1, got {rank}")
    plain = list(plain_linears(module))
    if not plain:
        raise UserError(
            f"the adapter {part!r}: {type(module).__name__} has no linear layer without an adapter. "
            "Leave the adapter out, or give it to another part"
        )
    if targets == "all-linear":
        wrapped = plain
    else:
        wrapped = [place for place in plain if not set(targets).isdisjoint(place[2].split("."))]
        missing = [name for name in targets if not any(name in path.split(".") for _, _, path in plain)]
        if missing or not wrapped:
            names = sorted({path.rpartition(".")[2] for _, _, path in plain})
            raise UserError(
                f"the adapter {part!r}: there is no linear layer without an adapter named "
                f"{missing or targets}; there are {names}"
            )
    config = LoraConfig(lora_dropout=dropout, use_rslora=kind == "rslora", use_dora=kind == "dora")
    for owner, name, _ in wrapped:
        base = owner.get_submodule(name)
        with base.weight.device:
            layer = Linear(base, NAME, config, r=rank, lora_alpha=rank if alpha is None else alpha)
        layer.parts_within = dict.fromkeys(PIECES, part)
        setattr(owner, name, layer.train(base.training))
    return len(wrapped)


def remove_adapters(module: nn.Module, part: str, *, merge: bool) -> None:
    """Replace the wrapped linears of an adapter by their bases, in place.

    Args:
        module: module that holds the adapter.
        part: name of the adapter's part; other adapters stay.
        merge: True adds the adapter's branches to the weights of the bases.
    """
    from peft.tuners.lora import Linear

    for owner in list(module.modules()):
        for name, layer in list(owner.named_children()):
            if isinstance(layer, Linear) and parts_within(layer).get(PIECES[0]) == part:
                if merge:
                    layer.merge()
                setattr(owner, name, layer.get_base_layer())


@dataclass(frozen=True)
class LoRA(Injection):
    """LoRA that a model has in all stages, as an entry of a recipe; its part is `lora`. See `add_adapters`.

    Args:
        rank: rank of the branches.
        alpha: scale of the branches times `rank`; None means `rank`, a scale of 1.
        dropout: probability of dropout on the branches' input in training.
        linears: names in the paths of linears.
    """

    rank: int = 256
    alpha: float | None = None
    dropout: float = 0.05
    linears: tuple[str, ...] = ("q_proj", "v_proj", "up_proj", "down_proj")

    def __call__(self, model: nn.Module) -> nn.Module:
        add_adapters(model, "lora", rank=self.rank, alpha=self.alpha, dropout=self.dropout, targets=list(self.linears))
        return model


def plain_linears(module: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Yield (owner, attribute, path) of the linears in a module's layers that have no adapter and are none."""
    for layer in list(outer_layers(module)) or [module]:
        yield from _below(layer, "")


def _below(module: nn.Module, path: str) -> Iterator[tuple[nn.Module, str, str]]:
    from peft.tuners.lora import Linear

    within = parts_within(module)
    for name, child in module.named_children():
        if name in within or isinstance(child, Linear):
            continue
        if type(child) is nn.Linear:  # torch's attention reads the weight of its subclass, past any wrapper
            yield module, name, f"{path}{name}"
        else:
            yield from _below(child, f"{path}{name}.")
