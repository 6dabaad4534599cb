"""This module sorts the parameters of a stage into optimizer groups."""

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
        """Return the number of the layer that holds the parameter `name`: 0 for the embeddings, i + 1 for block i."""
        ...


def layered(modules: Mapping[str, nn.Module]) -> dict[str, Layered]:
    """Return the parts that can tell a parameter's layer, by name."""
    return {name: module for name, module in modules.items() if isinstance(module, Layered)}


# Starts of names of tables whose rows are looked up (vocabularies, positions) and of vocabulary heads
LOOKED_UP = ("embed", "shared", "head", "relative_attention_bias", "table")


def multiplies(name: str) -> bool:
    """Return True for a matrix of a linear layer, such as "blocks.3.fc1.weight" or "resampler.q.weight".

    It is False for embeddings, vocabulary heads, and free parameters such as "query" and "positions".
    """
    pieces = name.split(".")
    if any(piece.startswith(LOOKED_UP) or piece.endswith(("embeddings", "_head")) for piece in pieces):
        return False
    return pieces[-1] == "weight" or any(piece.isdigit() for piece in pieces)


def parameter_groups(
    parts: Mapping[str, Mapping[str, nn.Parameter]],
    stage: Stage,
    layered: Mapping[str, Layered],
    bounds: Mapping[int, tuple[float, float]] | None = None,
) -> list[dict[str, Any]]:
    """Build the optimizer groups of a stage.

    Parameters share a group if part, weight decay, kind of update, bounds and, under `layer_decay`, layer are equal.

    Args:
        parts: part name -> parameter name -> parameter.
        stage: the stage, whose `train` holds the options of each part.
        layered: parts that know the layer of a parameter; `layer_decay` needs them.
        bounds: id of a parameter -> (lowest, highest) value; None: no parameter has bounds.
    Returns:
        Groups with `params`, `lr`, `weight_decay`, `name` ("vision.3", "language"), `part`, `muon` and `average`,
        and `bounds` if parameters have them.
    Raises:
        UserError: a part has `layer_decay` but no layers.
    """
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for part, train in stage.train_parts.items():
        if train.layer_decay < 1 and part not in layered:
            raise UserError(
                f"stage {stage.name!r}: part {part!r} has no layers, so `layer_decay` has no effect. Remove it"
            )
        top = layered[part].num_layers if train.layer_decay < 1 else 0
        for name, parameter in parts[part].items():
            layer = layered[part].layer_of(name) if train.layer_decay < 1 else 0
            decay = parameter.ndim > 1 or train.decay_vectors
            muon = train.optimizer == "muon" and parameter.ndim == 2 and multiplies(name)
            limits = (bounds or {}).get(id(parameter))
            group = groups.setdefault(
                (part, layer, decay, muon, limits),
                {
                    "params": [],
                    "lr": train.lr * train.layer_decay ** (top - layer),
                    "weight_decay": train.weight_decay if decay else 0.0,
                    "name": f"{part}.{layer}" if train.layer_decay < 1 else part,
                    "part": part,
                    "muon": muon,
                    "average": train.average,
                }
                | ({"bounds": list(limits)} if limits else {}),
            )
            group["params"].append(parameter)
    return list(groups.values())
