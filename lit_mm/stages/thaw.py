"""What learns at a step of a stage, and which modules then run in training mode."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from lit_mm.layers.protocols import parts_within
from lit_mm.stages.stage import Stage


def late_parts(stage: Stage) -> dict[str, int]:
    """Part -> optimizer step of the stage at which it thaws, of the parts that do not learn from the start."""
    return {part: train.from_step for part, train in stage.train.items() if train.from_step}


def learning_parts(stage: Stage, step: int) -> frozenset[str]:
    """The parts that optimizer step `step` (from 0) of a stage changes."""
    return frozenset(part for part, train in stage.train.items() if step >= train.from_step)


def set_modes(network: nn.Module, parts: Collection[str]) -> None:
    """Training mode for the modules of these parts, evaluation mode for all others: their dropout is off.

    A module that holds a part of another name (`parts_within`) follows both. Layers whose activations are computed a
    second time stay in training mode themselves, because transformers recomputes only there; what is inside of them
    does not.
    """
    for module, names in modules_with_parts(network):
        module.training = not names.isdisjoint(parts) or isinstance(module, GradientCheckpointingLayer)


def modules_with_parts(module: nn.Module, part: str = "") -> Iterator[tuple[nn.Module, set[str]]]:
    """Every module below a network, with the part that it belongs to and the parts of its attributes.

    Args:
        part: part of `module`; "" for the network, whose children are parts of their own names.
    """
    within = parts_within(module)
    for name, child in module.named_children():
        inner = within.get(name, part or name)
        yield child, {inner, *parts_within(child).values()}
        yield from modules_with_parts(child, inner)
