"""Thawing: the parts that train at a step of a stage, and the training mode of their modules."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from lit_mm.layers.protocols import parts_within
from lit_mm.stages.stage import Stage


def late_parts(stage: Stage) -> dict[str, int]:
    """Return part -> step of the stage at which it thaws, for parts that do not train from the start."""
    return {part: train.from_step for part, train in stage.train_parts.items() if train.from_step}


def learning_parts(stage: Stage, step: int) -> frozenset[str]:
    """Return the parts that train at optimizer step `step` (from 0) of a stage."""
    return frozenset(part for part, train in stage.train_parts.items() if step >= train.from_step)


def idle_steps(stage: Stage) -> int:
    """Return the number of optimizer steps at the start of a stage in which no part learns."""
    return min(train.from_step for train in stage.train_parts.values())


def idle_line(stage: str, steps: int) -> str:
    """Format the warning about a stage whose first steps train nothing.

    Args:
        stage: name of the stage.
        steps: see `idle_steps`.
    """
    return f"stage {stage}: nothing learns in the first {steps:,} optimizer steps, because every part has a `from_step`"


def set_modes(network: nn.Module, parts: Collection[str]) -> None:
    """Put modules of `parts` into training mode and all others into evaluation mode, which switches dropout off.

    A module that contains a second part (`parts_within`) is in training mode if either part is in `parts`. Layers with
    activation checkpointing are always in training mode, because transformers recomputes only then; modules inside
    them follow their own part.
    """
    for module, names in modules_with_parts(network):
        module.training = not names.isdisjoint(parts) or isinstance(module, GradientCheckpointingLayer)


def modules_with_parts(module: nn.Module, part: str = "") -> Iterator[tuple[nn.Module, set[str]]]:
    """Yield (module, parts) for every module below `module`: the part of the module and the parts of its attributes.

    Args:
        module: the network, or a module inside it.
        part: part of `module`; "" for the network, where the name of a child is its part.
    """
    within = parts_within(module)
    for name, child in module.named_children():
        inner = within.get(name, part or name)
        yield child, {inner, *parts_within(child).values()}
        yield from modules_with_parts(child, inner)
