"""The documents of the `data` commands, which come from a recipe or from one source."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from lit_mm.errors import UserError, first_line

if TYPE_CHECKING:  # seconds of import, which --help and a misspelt option need not wait for
    import lightning as L

    from lit_mm.commands.recipe import RecipeCLI
    from lit_mm.samples.processor import Processor
    from lit_mm.stages.stage import Stage
    from lit_mm.stream.check import Job, Layout

HELD_OUT = "held-out"  # name of the held-out documents among the sources
FINISHED = "the finished model"  # stands for a stage's name in the layout of held-out questions


@runtime_checkable
class HoldsOut(Protocol):
    """A data module whose held-out documents come from a source, which can be checked for errors."""

    heldout_source: Any


@runtime_checkable
class Several(Protocol):
    """A collection of several sources."""

    sources: Sequence[Any]


def sources_of(choices: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Return (name, source) of the source of `--source`, or of all training sources of the recipe."""
    if choices.source is not None:
        source = declared(choices.source)
        yield source.name, source
        return
    for module in data_modules(choices.recipe, choices.stage):
        yield from flat(module.source())


def jobs_of(cli: RecipeCLI, stage_name: str | None) -> list[Job]:
    """Return each source of a recipe with the layouts of all stages that train on it, and then the held-out documents.

    Stages that lay out a source in the same way share a layout.

    Args:
        stage_name: name of the only stage; None for all stages.
    Raises:
        UserError: `by_source` names an unknown source, or an encoder-decoder cannot learn the prompt of a stage.
    """
    from lit_mm.commands.source_names import check_model_sources, check_stage_sources
    from lit_mm.stream.check import Job
    from lit_mm.stream.datamodule import StreamDataModule

    sources: dict[object, tuple[str, Any]] = {}
    layouts: dict[object, dict[object, Layout]] = {}
    by_stage: list[StreamDataModule] = []
    for stage in stages_of(cli, stage_name):
        module = cli.data_of(stage)
        processors = {0: cli.model.processor} if stage is None else cli.model.processors_of(stage)
        steps = [step for step, processor in processors.items() if processor is not None]
        if not isinstance(module, StreamDataModule) or not steps:  # it lays out no samples
            for number, (name, source) in enumerate(flat(module.source())):
                sources.setdefault(source_key(name, source, stage, number), (name, source))
            continue
        by_stage.append(module)
        if stage is not None:
            with cli.placing():
                check_stage_sources(stage, module)
                cli.model.check_targets(stage)
        for step in steps:
            maker = module.maker(processors[step])
            for number, (name, source) in enumerate(flat(maker.documents)):
                key = source_key(name, source, stage, number)
                sources.setdefault(key, (name, source))
                add_layout(layouts.setdefault(key, {}), maker, name, phase_name(stage, step))
    if len(by_stage) == max(1, len(cli.config_init.stages or [])):
        check_model_sources(cli.model.processor, by_stage, module.heldout)
    jobs = [Job(name, source, tuple(layouts.get(key, {}).values())) for key, (name, source) in sources.items()]
    documents = module.heldout_source if isinstance(module, HoldsOut) else module.heldout()
    if documents:
        jobs.append(Job(HELD_OUT, documents, question_layouts(module, cli.model.processor), asks=True))
    return jobs


def question_layouts(module: L.LightningDataModule, processor: Processor | None) -> tuple[Layout, ...]:
    """Return the layout of held-out questions to the finished model."""
    from lit_mm.stream.check import Layout
    from lit_mm.stream.datamodule import StreamDataModule

    if processor is None or not isinstance(module, StreamDataModule):
        return ()
    return (Layout((FINISHED,), module.maker(processor)),)


def source_key(name: str, source: Any, stage: Stage | None, number: int) -> object:
    """Return a key that is equal for equal sources: the content of files, or else the stage's data section."""
    from lit_mm.documents.sources import Source

    if isinstance(source, Source):
        return name, repr(source.content)
    return name, repr(None if stage is None else stage.data), number


def add_layout(layouts: dict[object, Layout], maker: Any, source: str, phase: str) -> None:
    """Add the layout of a source in a phase of a stage. If an equal layout exists, the phase's name is added to it.

    Args:
        layouts: layouts of the source by the values that decide them.
        maker: the `SampleMaker` of the phase.
        source: name of the source.
    """
    from lit_mm.stream.check import Layout
    from lit_mm.stream.lengths import fingerprint

    key = fingerprint(maker.processor, source), maker.too_long, maker.row_tokens, maker.row_views
    before = layouts.get(key)
    layouts[key] = Layout((phase,), maker) if before is None else Layout((*before.stages, phase), before.maker)


def phase_name(stage: Stage | None, step: int) -> str:
    """Return the name of a stage and the step at which its inputs change; "training" without a stage."""
    if stage is None:
        return "training"
    return stage.name + (f" from step {step} on" if step else "")


def flat(source: Any) -> Iterator[tuple[str, Any]]:
    """Return (name, source) of one source or of each source of a mixture. A part of a file gives the whole file."""
    from lit_mm.stream.datamodule import name_of
    from lit_mm.stream.mixture import Joined
    from lit_mm.stream.split import Split

    if isinstance(source, Split):
        source = source.source
    if not isinstance(source, Several):
        yield name_of(source), source
        return
    for number, member in enumerate(source.sources):
        for name, single in flat(member):
            yield (source.names[number] if isinstance(source, Joined) else name), single


def declared(text: str) -> Any:
    """Open the source that `--source` declares."""
    from lit_mm.documents.sources import open_source

    return open_source(declaration_of(text))


def declaration_of(text: str) -> dict[str, Any]:
    """Parse the keys of `--source`.

    Raises:
        UserError: the text is not a YAML mapping.
    """
    import yaml

    try:
        declaration = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--source is not YAML: {first_line(error)}") from error
    if not isinstance(declaration, dict):
        raise UserError(f'--source is a mapping such as "{{format: llava, path: chat.json}}", got {text!r}')
    return declaration


def data_modules(recipe: Sequence[str], stage: str | None) -> list[L.LightningDataModule]:
    """Return the recipe's data modules, one for each stage with different data. The model is not built.

    Args:
        recipe: `--config` and overrides, as `fit` takes them.
        stage: name of the only stage to look at; None for all.
    Raises:
        UserError: a mistake in the recipe, no data section in it, or no such stage.
    """
    cli = parsed(recipe, build=False)
    differing: list[Stage | None] = []
    for candidate in stages_of(cli, stage):
        if candidate is None or candidate.data not in [earlier.data for earlier in differing if earlier is not None]:
            differing.append(candidate)
    return [cli.data_of(candidate) for candidate in differing]


def stages_of(cli: RecipeCLI, stage_name: str | None) -> list[Stage | None]:
    """Return the stages of a recipe; [None] for a recipe without stages.

    Args:
        stage_name: name of the only stage; None for all stages.
    Raises:
        UserError: the stage does not exist.
    """
    stages: list[Stage | None] = [stage for stage in cli.stages if stage_name in (None, stage.name)]
    if stage_name is not None and not stages:
        raise UserError(f"--stage names {stage_name!r}; the recipe has {[stage.name for stage in cli.stages]}")
    return stages or [None]


def parsed(recipe: Sequence[str], *, build: bool) -> RecipeCLI:
    """Parse a recipe in the same way as `fit`.

    Args:
        recipe: `--config` and overrides, as `fit` takes them.
        build: True builds the model without memory for its weights, False only checks its arguments.
    """
    from lit_mm.environment import check_torch_pair

    check_torch_pair()  # Lightning would fail without an explanation
    import torch

    from lit_mm.commands.recipe import RecipeCLI, quiet

    quiet()
    with torch.device("meta"):  # the processor needs the sizes of the parts and not their weights
        return RecipeCLI(recipe, "data", build=build)
