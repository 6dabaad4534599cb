"""Stages as data: the parts that learn, their rates, the length and the data. A recipe is an ordered list of stages."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn

from lit_mm.errors import UserError
from lit_mm.samples.inputs import Inputs
from lit_mm.stages.adapter import Adapter, adapter_part
from lit_mm.stages.examine import Examine
from lit_mm.stages.schedule import ByEpoch, Cosine, Schedule

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # name of a stage, which is part of file names and of addresses of keys
ALL_STAGES, REPLACE = "*", "replace"  # words that may replace the name of a stage in the address of a key


@dataclass
class Train:
    """Settings for the training of one part.

    Args:
        lr: peak learning rate.
        weight_decay: decoupled weight decay.
        layer_decay: factor of the learning rate per layer: a layer has `lr * layer_decay ** (layers above it)`; 1 gives
            every layer the same rate.
        from_step: optimizer step of the stage at which the part thaws; on a single device earlier steps have no
            backward pass for it.
        optimizer: "adamw", or "muon", which trains the matrices that multiply activations by Muon and the rest
            (vectors, embeddings, heads, learnt queries) by AdamW. Muon learns in fewer steps from random weights; the
            published recipes all use AdamW.
        decay_vectors: True decays vectors (biases, norm weights) too, as some authors do.
        adapter: adapter that learns in place of the part, with these settings; None: the part itself learns.
        average: decay of an exponential moving average of the weights, which is saved beside them, such as 0.9999. It
            starts at the values before the first step and ends with the stage. None: no average.
        optional: True leaves the settings out if the model has no part of this name, so that a recipe fits models with
            and without the part; see `of_model`.
    """

    lr: float
    weight_decay: float = 0.1
    layer_decay: float = 1.0
    from_step: int = 0
    optimizer: Literal["adamw", "muon"] = "adamw"
    decay_vectors: bool = False
    adapter: Adapter | None = None
    average: float | None = None
    optional: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.adapter, Mapping):  # a config that is checked before it is built
            self.adapter = Adapter(**self.adapter)
        if self.average is not None and not 0 < self.average < 1:
            raise UserError(f"the decay of an average of weights is between 0 and 1, got average={self.average}")
        numbers = 0 < self.lr < math.inf and 0 < self.layer_decay <= 1 and 0 <= self.weight_decay < math.inf
        if not numbers or self.from_step < 0:
            raise UserError(
                f"a part learns with lr > 0, 0 < layer_decay <= 1, weight_decay >= 0 and from_step >= 0, got {self}"
            )


@dataclass
class Start:
    """The weights that a stage starts from.

    Args:
        stage: name of an earlier stage, whose end holds the weights.
        averaged: True takes the averages of the parts that have one, see `Train.average`.
    """

    stage: str
    averaged: bool = False


@dataclass
class Stage:
    """One training phase of a recipe.

    Args:
        name: name of the stage in logs, metrics, checkpoints and addresses of keys. It is unique in its recipe, of
            letters, digits, `_` and `-`, and not "replace".
        train: name of a part -> settings for its training. Parts that are not listed stay frozen.
        max_steps: length in optimizer steps; None means that `epochs` gives the length.
        epochs: length in passes over the stage's data, if `max_steps` is None.
        schedule: learning rate over the steps as a share of every part's peak rate, one of `lit_mm.stages`.
        betas: decay rates of AdamW's moments.
        clip: limit of the gradient norm over all trainable parameters; 0 switches it off.
        data: arguments of the data module that this stage changes.
        starts_from: name of an earlier stage whose end this stage starts from, or a `Start`, which may choose the
            averages there; None means the stage right before. Several stages may start from the end of the same stage.
            The run keeps that end and the end of every branch.
        noisy: names of frozen parts that keep their dropout. Other frozen parts run in evaluation mode.
        objectives: name of an objective of the model -> weight in the loss. Empty means the model's first objective
            with weight 1.
        inputs: changes of the model's inputs, by which training documents become samples; None changes nothing.
        inputs_from: optimizer step of the stage -> further changes of the inputs from that step on. Optimizer, schedule
            and the order of samples go on.
        examine: figures to measure at the times of the examinations; None measures the accuracy alone.
    Raises:
        UserError: the name is no name of a stage, the stage trains nothing, or a number is out of its range.
    """

    name: str
    train: dict[str, Train] = field(default_factory=dict)
    max_steps: int | None = None
    epochs: int = 1
    schedule: Schedule = field(default_factory=Cosine)
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    data: dict[str, Any] = field(default_factory=dict)
    starts_from: str | Start | None = None
    noisy: list[str] = field(default_factory=list)
    objectives: dict[str, float] = field(default_factory=dict)
    inputs: Inputs | None = None
    inputs_from: dict[int, Inputs] = field(default_factory=dict)
    examine: Examine | None = None

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name) or self.name == REPLACE:
            raise UserError(
                f"stages.{self.name}: the name of a stage has 1 to 64 letters, digits, `_` and `-`, and is not "
                f"{REPLACE!r}, got {self.name!r}"
            )
        if isinstance(self.starts_from, Mapping):  # a config that is checked before it is built
            self.starts_from = Start(**self.starts_from)
        self.check_inputs()
        if not self.train:
            raise UserError(f"stages.{self.name}: the stage trains nothing. Name at least one part under `train`")
        if not 0 <= self.clip < math.inf:
            raise UserError(
                f"stages.{self.name}.clip: the limit of the gradient norm is at least 0 (0 switches it off), got "
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

    @property
    def train_parts(self) -> dict[str, Train]:
        """Part that learns -> settings: `train`, where an adapter takes the place of its part."""
        return {part if each.adapter is None else adapter_part(part): each for part, each in self.train.items()}

    @property
    def origin(self) -> str | None:
        """Name of the stage in `starts_from`."""
        return self.starts_from.stage if isinstance(self.starts_from, Start) else self.starts_from

    @property
    def from_averages(self) -> bool:
        """True if the stage starts from the averages of an earlier stage."""
        return isinstance(self.starts_from, Start) and self.starts_from.averaged

    def check_inputs(self) -> None:
        """Refuse changes of the inputs at steps that the stage does not have.

        Raises:
            UserError: a step is below 1, or not before the end of the stage.
        """
        beyond = [step for step in self.inputs_from if step < 1 or (self.max_steps and step >= self.max_steps)]
        if beyond:
            raise UserError(
                f"stages.{self.name}.inputs_from: steps are from 1 to below the length of the "
                f"stage{f', {self.max_steps}' if self.max_steps else ''}, got {beyond}. For inputs from the first "
                f"step, use `stages.{self.name}.inputs`"
            )


def of_model(stage: Stage, parts: Collection[str], added: Collection[str]) -> Stage:
    """Leave out the optional settings of parts that a model does not have.

    Args:
        stage: stage of the recipe.
        parts: parts of the model.
        added: those of `parts` that lie inside other parts, such as newline or partial_lora.
    Raises:
        UserError: settings are left out, and an added part has no settings: it would stay frozen because of a wrong
            name.
    """
    absent = sorted(part for part, train in stage.train.items() if train.optional and part not in parts)
    if not absent:
        return stage
    if frozen := sorted(set(added) - stage.train.keys()):
        raise UserError(
            f"stages.{stage.name}.train: the model has no parts {absent}, whose settings are optional, and has the "
            f"added parts {frozen}, which have no settings and would stay frozen. Correct the names, name these parts "
            "as well, or leave `optional` out"
        )
    return replace(stage, train={part: train for part, train in stage.train.items() if part not in absent})


def check_recipe(
    stages: list[Stage], parts: Mapping[str, Mapping[str, nn.Parameter]], objectives: Collection[str] = ()
) -> None:
    """Refuse a recipe that this model cannot run.

    Args:
        stages: stages of the recipe.
        parts: part -> its parameters by name.
        objectives: names of the model's objectives.
    Raises:
        UserError: there is no stage, two stages have the same name, a stage starts from a stage that is not before it,
            a part thaws after the end of its stage, or this model cannot run a stage, see `check_stage`.
    """
    if not stages:
        raise UserError("the recipe has no stages: add `stages:` with at least one entry")
    names = [stage.name for stage in stages]
    if len(set(names)) < len(names):
        raise UserError(f"stage names must differ, got {names}")
    adapters_of(stages)
    for stage in stages:
        check_stage(stage, parts, objectives)
        steps = stage.max_steps or math.inf
        if late := {part: train.from_step for part, train in stage.train.items() if train.from_step >= steps}:
            raise UserError(
                f"stages.{stage.name}.train: a part thaws before the stage ends after {steps} optimizer steps, got "
                f"`from_step` {late}. Lower it, or take the part out of `train`"
            )


def check_stage(
    stage: Stage, parts: Mapping[str, Mapping[str, nn.Parameter]], objectives: Collection[str] = ()
) -> None:
    """Refuse a stage that this model cannot run.

    Args:
        stage: stage to check.
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
        except UserError as error:  # the schedule's message does not name the stage
            raise UserError(f"stages.{stage.name}.schedule: {error}") from error
    elif isinstance(stage.schedule, ByEpoch) and stage.schedule.epochs != stage.epochs:
        raise UserError(
            f"stages.{stage.name}.schedule has {stage.schedule.epochs} epochs, but the stage has "
            f"{stage.epochs}. Write the same number in both, or set the length of the stage with max_steps"
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
    """Return stage -> the stage whose end it starts from; None for the first stage.

    Raises:
        UserError: `starts_from` names a stage that is not before it in the recipe, or averages of one that has none.
    """
    before: dict[str, str | None] = {}
    previous = None
    for stage in stages:
        if stage.origin is not None and stage.origin not in before:
            raise UserError(
                f"stages.{stage.name}.starts_from: expected an earlier stage of the recipe, "
                f"{list(before) or 'but this is the first stage'}; got {stage.origin!r}"
            )
        if stage.from_averages and not any(
            train.average for earlier in stages if earlier.name == stage.origin for train in earlier.train.values()
        ):
            raise UserError(
                f"stages.{stage.name}.starts_from: the stage {stage.origin!r} averages no part. Set `average` in "
                "its `train`, or use `averaged: false`"
            )
        before[stage.name] = stage.origin or previous
        previous = stage.name
    return before


def adapters_of(stages: Sequence[Stage]) -> dict[str, dict[str, Adapter]]:
    """Return stage -> part -> adapter that the part has during the stage.

    Args:
        stages: stages of the recipe, in order.
    Raises:
        UserError: a stage continues an adapter with other settings, or no stage follows one that merges or drops.
    """
    before = origins(stages)
    present: dict[str, dict[str, Adapter]] = {}
    for stage in stages:
        origin = before[stage.name]
        adapters = {} if origin is None else {p: a for p, a in present[origin].items() if a.after == "keep"}
        for part, train in stage.train.items():
            if train.adapter is None:
                continue
            if part in adapters and not adapters[part].fits(train.adapter):
                raise UserError(
                    f"stages.{stage.name}.train.{part}.adapter differs from the adapter that {origin!r} leaves on the "
                    f"part, {adapters[part]}. Give it the same settings, or let {origin!r} merge or drop its adapter"
                )
            if train.adapter.after != "keep" and stage.name not in before.values():
                raise UserError(
                    f"stages.{stage.name}.train.{part}.adapter.after: no stage follows, so nothing would "
                    f"{train.adapter.after} the adapter. Leave `after` out"
                )
            adapters[part] = train.adapter
        present[stage.name] = adapters
    return present


def branches(stages: Sequence[Stage]) -> dict[str, str]:
    """Return stage -> the stage whose end it starts from, for stages that do not continue the stage right before."""
    names = [stage.name for stage in stages]
    pairs = zip([None, *names], origins(stages).items(), strict=False)
    return {stage: origin for previous, (stage, origin) in pairs if origin not in (None, previous)}


def lasting_ends(stages: Sequence[Stage]) -> frozenset[str]:
    """Return the stages whose ends a run keeps: those that a stage other than the next starts from, and branch ends.

    The end of a stage that only the next stage starts from is an ordinary checkpoint.
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
            parameter.requires_grad_(name in stage.train_parts)


def best_figure(stages: Sequence[Stage]) -> str:
    """Return the figure by which the best checkpoint of a recipe stays; "" for the accuracy.

    Raises:
        UserError: two stages name different figures.
    """
    figures = {stage.examine.best for stage in stages if stage.examine is not None and stage.examine.best}
    if len(figures) > 1:
        raise UserError(
            f"stages.*.examine.best: checkpoints of a run are compared by one figure, got {sorted(figures)}"
        )
    return next(iter(figures), "")
