"""The cost of a recipe before it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_mm.commands.recipe import RecipeCLI


@dataclass(frozen=True)
class Cost:
    """The cost of a run of a recipe.

    Attributes:
        parameters: parameters of the model.
        trainable: parameters that learn, in the stage with the most of them.
        memory: bytes on the device of the fullest rank without activations, in the stage with the most; None if there
            is no plan for the precision.
        steps: optimizer steps of all stages; None if a stage's length is in epochs.
        rows: rows of all steps, each a sample or, packed, several; None if the steps are unknown.
        tokens: tokens of all packed rows, full rows assumed; None if a stage does not pack or the steps are unknown.
        operations: operations of forward and backward pass of all stages, as `describe` estimates them without reading
            data; None if a stage's are unknown.
    """

    parameters: int
    trainable: int
    memory: int | None
    steps: int | None
    rows: int | None
    tokens: int | None
    operations: float | None


def cost_of(cli: RecipeCLI, plan: Mapping[str, Any]) -> Cost:
    """Compute the cost of a run from the plan of its recipe.

    Args:
        cli: the recipe.
        plan: plan of the recipe, see `lit_mm.commands.describe.plan_of`.
    """
    stages = plan["stages"]
    steps = [stage["steps"] for stage in stages]
    has_steps = None not in steps
    lengths = [cli.data_of(stage).row_tokens for stage in cli.stages]
    rows = [stage["rows_per_step"] for stage in stages]
    operations = [stage["costs"] and stage["costs"]["whole"]["operations"] for stage in stages]
    memory = [stage["memory"]["device"]["total"] for stage in stages if stage["memory"] is not None]
    return Cost(
        parameters=plan["parameters"]["total"],
        trainable=max(stage["trainable_total"] for stage in stages),
        memory=max(memory) if len(memory) == len(stages) else None,
        steps=sum(steps) if has_steps else None,
        rows=sum(count * each for count, each in zip(steps, rows, strict=True)) if has_steps else None,
        tokens=sum(count * each * length for count, each, length in zip(steps, rows, lengths, strict=True))
        if has_steps and None not in lengths
        else None,
        operations=None if None in operations else sum(operations),
    )
