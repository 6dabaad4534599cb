"""Stages as data: which parts learn, how fast, for how long, and on what. A recipe is an ordered list of stages."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from lit_mm.errors import UserError
from lit_mm.samples.inputs import Inputs
from lit_mm.stages.schedule import ByEpoch, Cosine, Schedule

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # of a stage: it stands in names of files and in addresses of keys
ALL_STAGES, REPLACE = "*", "replace"  # in the place of a stage's name in the address of a key


@dataclass
class Train:
    """How one part learns.

    Args:
        lr: peak learning rate.
        weight_decay: decoupled decay.
        decay_vectors: True if vectors (biases, norm weights) are decayed too, as some authors do.
        layer_decay: the lr of a layer is `lr * layer_decay ** (layers above it)`; 1 gives every layer the same.
        from_step: optimizer steps of the stage before the part thaws; on a single device they cost it no backward pass.
        optimizer: muon trains the matrices that activations are multiplied with by Muon, and the rest (vectors,
            embeddings, heads, learnt queries) by AdamW. It learns in fewer steps from random weights; the published
            recipes all say AdamW.
    """

    lr: float
    weight_decay: float = 0.1
    layer_decay: float = 1.0
    from_step: int = 0
    optimizer: Literal["adamw", "muon"] = "adamw"
    decay_vectors: bool = False

    def __post_init__(self) -> None:
        numbers = 0 < self.lr < math.inf and 0 < self.layer_decay <= 1 and 0 <= self.weight_decay < math.inf
        if not numbers or self.from_step < 0:
            raise UserError(
                f"a part learns with lr > 0, 0 < layer_decay <= 1, weight_decay >= 0 and from_step >= 0, got {self}"
            )


@dataclass
class Stage:
    """One training phase of a recipe.

    Args:
        name: names the stage in logs, metrics, checkpoints and addresses of keys; unique in its recipe, of letters,
            digits, `_` and `-`, not "replace".
        train: part name -> how it learns. Parts that are not listed stay frozen.
        max_steps: optimizer steps; left out, the length is `epochs`.
        epochs: passes over the stage's data, where `max_steps` is left out.
        schedule: learning rate over the steps, as a share of every part's peak: one of `lit_mm.stages`.
        betas: AdamW's moment decay rates.
        clip: gradient norm limit over all trainable parameters; 0 switches it off.
        data: arguments of the data module that this stage changes.
        starts_from: name of the stage before it in the recipe whose end it starts from; None: the stage right before.
            Several stages may start from the end of one. That end is kept, and so is the end of every branch.
        noisy: frozen parts that keep their dropout. Other frozen parts run in evaluation mode.
        inputs: changes of how its training documents become samples; None: as in the model in use.
        objectives: name of an objective of the model -> its weight in the loss; empty: the model's first, as it is.
        inputs_from: optimizer step of the stage -> further changes from that step on. Optimizer, schedule and the order
            of samples go on.
    """

    name: str
    train: dict[str, Train] = field(default_factory=dict)
    max_steps: int | None = None
    epochs: int = 1
    schedule: Schedule = field(default_factory=Cosine)
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    data: dict[str, Any] = field(default_factory=dict)
    starts_from: str | None = None
    noisy: list[str] = field(default_factory=list)
    objectives: dict[str, float] = field(default_factory=dict)
    inputs: Inputs | None = None
    inputs_from: dict[int, Inputs] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name) or self.name == REPLACE:
            raise UserError(
                f"stages.{self.name}: the name of a stage has 1 to 64 letters, digits, `_` and `-`, and is not "
                f"{REPLACE!r}, got {self.name!r}"
            )
        self.check_inputs()
        if not self.train:
            raise UserError(f"stages.{self.name}: the stage trains nothing. Name at least one part under `train`")
        if not 0 <= self.clip < math.inf:
            raise UserError(
                f"stages.{self.name}.clip: the limit of the gradient norm is at least 0, which switches it off, got "
                f"{self.clip}"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"stages.{self.name}.betas: decay rates are in [0, 1), got {list(self.betas)}")
        if (self.max_steps is not None and self.max_steps < 1) or self.epochs < 1:
            raise UserError(
                f"stages.{self.name}: max_steps and epochs are at least 1, got {self.max_steps} and {self.epochs}"
            )
        if wrong := {name: weight for name, weight in self.objectives.items() if not 0 < weight < math.inf}:
            raise UserError(f"stages.{self.name}.objectives: weights of objectives are positive numbers, got {wrong}")

    def check_inputs(self) -> None:
        """Refuse changes of the inputs that no step of the stage would see.

        Raises:
            UserError: a step below 1, or at or behind the end of the stage.
        """
        beyond = [step for step in self.inputs_from if step < 1 or (self.max_steps and step >= self.max_steps)]
        if beyond:
            raise UserError(
                f"stages.{self.name}.inputs_from: changes begin at steps from 1 to before the end of the stage"
                f"{f', {self.max_steps}' if self.max_steps else ''}, got {beyond}. What holds from the first step is "
                f"`stages.{self.name}.inputs`"
            )


def check_recipe(
    stages: list[Stage], parts: Mapping[str, Mapping[str, nn.Parameter]], objectives: Collection[str] = ()
) -> None:
    """Refuse a recipe that this model cannot run.

    Args:
        stages: stages of the recipe.
        parts: part -> its parameters by name.
        objectives: names of the model's objectives.
    Raises:
        UserError: no stage, two stages of one name, a stage that starts from one which is not before it, or a stage
            that this model cannot run, see `check_stage`.
    """
    if not stages:
        raise UserError("the recipe has no stages: add `stages:` with at least one entry")
    names = [stage.name for stage in stages]
    if len(set(names)) < len(names):
        raise UserError(f"stage names must differ, got {names}")
    origins(stages)
    for stage in stages:
        check_stage(stage, parts, objectives)


def check_stage(
    stage: Stage, parts: Mapping[str, Mapping[str, nn.Parameter]], objectives: Collection[str] = ()
) -> None:
    """Refuse a stage that this model cannot run.

    Args:
        parts: part -> its parameters by name.
        objectives: names of the model's objectives.
    Raises:
        UserError: the stage names a part or an objective that the model does not have, its warm-up is longer than the
            stage, or its schedule counts other epochs than the stage.
    """
    unknown = sorted(stage.train.keys() - parts.keys())
    if unknown:
        raise UserError(
            f"stages.{stage.name}.train: stage {stage.name!r} trains unknown parts {unknown}; this model has "
            f"{sorted(parts)}. Correct the names"
        )
    if stage.max_steps is not None:
        try:
            stage.schedule.factor(0, stage.max_steps)
        except UserError as error:  # it does not know its stage
            raise UserError(f"stages.{stage.name}.schedule: {error}") from error
    elif isinstance(stage.schedule, ByEpoch) and stage.schedule.epochs != stage.epochs:
        raise UserError(
            f"stages.{stage.name}.schedule changes the rate over {stage.schedule.epochs} epochs, the stage has "
            f"{stage.epochs}. Write the same number in both, or give the stage's length in max_steps"
        )
    if wrong := sorted(set(stage.noisy) - (parts.keys() - stage.train.keys())):
        frozen = sorted(parts.keys() - stage.train.keys())
        raise UserError(
            f"stages.{stage.name}.noisy: `noisy` names frozen parts that keep their dropout, got {wrong}; frozen "
            f"are {frozen}"
        )
    if unknown := sorted(stage.objectives.keys() - set(objectives)):
        raise UserError(
            f"stages.{stage.name}.objectives: the stage weighs unknown objectives {unknown}; this model has "
            f"{sorted(objectives)}. Correct the names"
        )


def origins(stages: Sequence[Stage]) -> dict[str, str | None]:
    """Stage -> the stage whose end it starts from; None for the first one.

    Raises:
        UserError: `starts_from` names a stage that is not before it in the recipe.
    """
    before: dict[str, str | None] = {}
    previous = None
    for stage in stages:
        if stage.starts_from is not None and stage.starts_from not in before:
            raise UserError(
                f"stages.{stage.name}.starts_from: a stage starts from the end of one that is before it in the recipe, "
                f"{list(before) or 'and it is the first'}; got {stage.starts_from!r}"
            )
        before[stage.name] = stage.starts_from or previous
        previous = stage.name
    return before


def branches(stages: Sequence[Stage]) -> dict[str, str]:
    """Stage -> the stage whose end it starts from, of the stages that do not go on from the one right before."""
    names = [stage.name for stage in stages]
    pairs = zip([None, *names], origins(stages).items(), strict=False)
    return {stage: origin for previous, (stage, origin) in pairs if origin not in (None, previous)}


def lasting_ends(stages: Sequence[Stage]) -> frozenset[str]:
    """The stages whose end a run keeps: those that another stage than the next starts from, and the ends of branches.

    The end of a stage that only the next one goes on from is a checkpoint like any other.
    """
    before = origins(stages)
    names = list(before)
    return frozenset(
        name
        for name, following in zip(names, [*names[1:], None], strict=True)
        if {stage for stage, origin in before.items() if origin == name} != {following}
    )


def apply_stage(parts: Mapping[str, Mapping[str, nn.Parameter]], stage: Stage) -> None:
    """Freeze everything, then thaw the parts that `stage` names."""
    check_stage(stage, parts, stage.objectives)
    for name, parameters in parts.items():
        for parameter in parameters.values():
            parameter.requires_grad_(name in stage.train)
