"""A stage's parameters in the groups of its optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import nn

from lit_mm.errors import UserError
from lit_mm.stages.stage import Stage


@runtime_checkable
class Layered(Protocol):
    """A part whose learning rate may decay from layer to layer.

    Attributes:
        num_layers: number of its blocks.
    """

    num_layers: int

    def layer_of(self, name: str) -> int:
        """0 for the embeddings, i + 1 for block i, of the parameter `name`."""
        ...


def layered(modules: Mapping[str, nn.Module]) -> dict[str, Layered]:
    """The parts that can tell a parameter's layer, by name."""
    return {name: module for name, module in modules.items() if isinstance(module, Layered)}


# Of vocabularies and positions: matrices whose rows are looked up, and heads that score a vocabulary
LOOKED_UP = ("embed", "shared", "head", "relative_attention_bias", "table")


def multiplies(name: str) -> bool:
    """True for a matrix that activations are multiplied with, by its name: "blocks.3.fc1.weight", "resampler.q.weight".

    Not for embeddings, vocabulary heads, and what is no weight of a layer ("query", "positions").
    """
    pieces = name.split(".")
    if any(piece.startswith(LOOKED_UP) or piece.endswith(("embeddings", "_head")) for piece in pieces):
        return False
    return pieces[-1] == "weight" or any(piece.isdigit() for piece in pieces)


def parameter_groups(
    parts: Mapping[str, Mapping[str, nn.Parameter]], stage: Stage, layered: Mapping[str, Layered]
) -> list[dict[str, Any]]:
    """The optimizer's groups: one per part, layer (where it decays), decay switch and kind of update.

    Args:
        layered: the parts that can tell a parameter's layer, needed for `layer_decay`.
    Returns:
        Groups with `params`, `lr`, `weight_decay`, `name` ("vision.3", "language"), `part` and `muon`.
    """
    groups: dict[tuple[str, int, bool, bool], dict[str, Any]] = {}
    for part, train in stage.train.items():
        if train.layer_decay < 1 and part not in layered:
            raise UserError(f"stage {stage.name!r}: part {part!r} has no layers to decay over; remove `layer_decay`")
        top = layered[part].num_layers if train.layer_decay < 1 else 0
        for name, parameter in parts[part].items():
            layer = layered[part].layer_of(name) if train.layer_decay < 1 else 0
            decay = parameter.ndim > 1 or train.decay_vectors
            muon = train.optimizer == "muon" and parameter.ndim == 2 and multiplies(name)
            group = groups.setdefault(
                (part, layer, decay, muon),
                {
                    "params": [],
                    "lr": train.lr * train.layer_decay ** (top - layer),
                    "weight_decay": train.weight_decay if decay else 0.0,
                    "name": f"{part}.{layer}" if train.layer_decay < 1 else part,
                    "part": part,
                    "muon": muon,
                },
            )
            group["params"].append(parameter)
    return list(groups.values())
