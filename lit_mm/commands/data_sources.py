"""The documents that the `data` commands work on: those of a recipe, or of one source."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from lit_mm.errors import UserError

if TYPE_CHECKING:  # seconds of import, which --help and a misspelt option need not wait for
    import lightning as L

    from lit_mm.commands.recipe import RecipeCLI
    from lit_mm.stages.stage import Stage


@runtime_checkable
class HoldsOut(Protocol):
    """A data module whose held-out documents come from a source, which can be checked for errors."""

    heldout_source: Any


@runtime_checkable
class Several(Protocol):
    """Documents of several sources."""

    sources: Sequence[Any]


def sources_of(choices: argparse.Namespace, *, heldout: bool = False) -> Iterator[tuple[str, Any]]:
    """(name, source) of the one source of `--source`, or of all sources of the recipe.

    Args:
        heldout: whether the held-out documents of the recipe follow as a further source.
    """
    if choices.source is not None:
        source = declared(choices.source)
        yield source.name, source
        return
    for module in data_modules(choices.recipe, choices.stage):
        yield from flat(module.source())
    if heldout:
        documents = module.heldout_source if isinstance(module, HoldsOut) else module.heldout()
        if documents:
            yield "held-out", documents


def flat(source: Any) -> Iterator[tuple[str, Any]]:
    """(name, source) of each source of a mixture, or of a single source."""
    from lit_mm.stream.datamodule import name_of
    from lit_mm.stream.mixture import Joined

    if not isinstance(source, Several):
        yield name_of(source), source
        return
    for number, member in enumerate(source.sources):
        for name, single in flat(member):
            yield (source.names[number] if isinstance(source, Joined) else name), single


def declared(text: str) -> Any:
    """The source that `--source` declares."""
    import yaml

    from lit_mm.documents.sources import open_source

    try:
        declaration = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--source is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(declaration, dict):
        raise UserError(f'--source is a mapping such as "{{format: llava, path: chat.json}}", got {text!r}')
    return open_source(declaration)


def data_modules(recipe: Sequence[str], stage: str | None) -> list[L.LightningDataModule]:
    """The recipe's data modules, one for each stage with different data. The model is not built.

    Args:
        recipe: `--config` and overrides, as `fit` takes them.
        stage: name of the only stage to look at; None for all.
    Raises:
        UserError: a mistake in the recipe, no data section in it, or no such stage.
    """
    cli = parsed(recipe, build=False)
    stages = [candidate for candidate in cli.stages if stage in (None, candidate.name)]
    if stage is not None and not stages:
        raise UserError(f"--stage names {stage!r}; the recipe has {[candidate.name for candidate in cli.stages]}")
    differing: list[Stage | None] = [
        candidate
        for number, candidate in enumerate(stages)
        if candidate.data not in [earlier.data for earlier in stages[:number]]
    ]
    return [cli.data_of(candidate) for candidate in differing or [None]]


def parsed(recipe: Sequence[str], *, build: bool) -> RecipeCLI:
    """The recipe, parsed as `fit` does.

    Args:
        recipe: `--config` and overrides, as `fit` takes them.
        build: whether the model is built, without memory for its weights; otherwise its arguments are only checked.
    """
    from lit_mm.environment import check_torch_pair

    check_torch_pair()  # before lightning fails over it
    import torch

    from lit_mm.commands.recipe import RecipeCLI, quiet

    quiet()
    with torch.device("meta"):  # the processor needs the parts' sizes, not their weights: any model fits
        return RecipeCLI(recipe, "data", build=build)
