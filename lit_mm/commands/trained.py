"""Trained models, opened from a checkpoint or from a run folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import yaml

from lit_mm.checkpoints import manifest, reading
from lit_mm.checkpoints.before import translate_config
from lit_mm.commands.config_text import Entry, flow, read_config
from lit_mm.commands.recipe import RecipeCLI, check_config, quiet
from lit_mm.commands.signatures import class_of
from lit_mm.errors import UserError
from lit_mm.module import MultimodalModule, family_of
from lit_mm.stream.datamodule import StreamDataModule

OF_TRAINING = ("callbacks", "logger", "profiler", "default_root_dir")  # keys of the Trainer that only training needs


def open_trained(
    place: str,
    config: str | None = None,
    stage: str | None = None,
    accelerator: str | None = None,
    *,
    averaged: bool = False,
) -> tuple[MultimodalModule, L.LightningDataModule, Path]:
    """Open a model with its weights and precision, the data module of its recipe, and the path of the checkpoint.

    Args:
        place: run folder, whose newest checkpoint is opened, or checkpoint.
        config: config file that the model is built from; None for the config in the checkpoint.
        stage: name of the stage whose newest checkpoint is opened; None for the newest one of the run.
        accelerator: accelerator of the Trainer; None for the config's.
        averaged: True loads the moving averages of the weights that have one.
    """
    cli, path = _opened(place, config, stage, accelerator, with_data=True, averaged=averaged)
    return cli.model, cli.datamodule, path


def open_model(
    place: str,
    config: str | None = None,
    stage: str | None = None,
    accelerator: str | None = None,
    *,
    averaged: bool = False,
) -> MultimodalModule:
    """Open a model with its weights and precision, without its data. For the arguments see `open_trained`."""
    return _opened(place, config, stage, accelerator, with_data=False, averaged=averaged)[0].model


@contextmanager
def launch_folder(place: str, config: str | None = None, stage: str | None = None) -> Iterator[str]:
    """Change inside a `with` block to the folder where a run was launched, and provide the checkpoint's absolute path.

    Relative paths of the run's config start in that folder. The folder stays the current one if the user gives a
    config, or if the checkpoint comes from another machine. For the arguments see `open_trained`.
    """
    checkpoint = _read(manifest.find(place, stage))
    folder = checkpoint.manifest.get("folder", "")
    path = str(checkpoint.path.absolute())
    with chdir(folder if config is None and Path(folder).is_dir() else "."):
        yield path


def _read(path: Path) -> reading.Checkpoint:
    """Open a checkpoint. If it is damaged, the error names one that is not."""
    try:
        return reading.read(path)
    except manifest.Damaged as error:
        raise UserError(f"{error}{reading.alternative(path)}") from error


def _opened(
    place: str,
    config: str | None,
    stage: str | None,
    accelerator: str | None,
    *,
    with_data: bool,
    averaged: bool = False,
) -> tuple[RecipeCLI, Path]:
    """Return the recipe of a checkpoint with the trained model, and the checkpoint's path."""
    quiet()
    path = manifest.find(place, stage)
    checkpoint = _read(path)
    entries = None if config is None else read_config(config)
    if entries is None:
        recipe = translate_config(yaml.safe_load(checkpoint.config))
    else:
        check_config(entries)
        recipe = yaml.safe_load(flow(entries))
    recipe = for_answers(recipe, accelerator)
    recipe = without_training_data(recipe) if with_data else recipe
    label = config or f"the config in {str(path)!r}"
    cli = RecipeCLI(recipe, "evaluate", label, with_data=with_data, entries=entries)
    module = cli.model
    reading.load_weights(module, checkpoint, family_of(module), averaged=averaged)
    # The Trainer gives the model its precision; one process is enough for any number of training ranks
    try:
        module._trainer = cli.trainer_of([], [], strategy="auto", devices=1, num_nodes=1)
    except UserError as error:
        raise UserError(f"{error}, or choose what this machine has, such as --accelerator cpu") from error
    module.to(module.trainer.strategy.root_device)
    return cli, path


def for_answers(recipe: dict[str, Any], accelerator: str | None = None) -> dict[str, Any]:
    """Return a run's config without the callbacks, logger and profiler, which only training needs.

    Args:
        accelerator: accelerator in place of the config's; None keeps the latter.
    """
    trainer = {key: value for key, value in (recipe.get("trainer") or {}).items() if key not in OF_TRAINING}
    return recipe | {"trainer": trainer | ({"accelerator": accelerator} if accelerator else {})}


def without_training_data(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a run's config without the arguments of its data module that open training data, which may be missing."""
    data = recipe.get("data")
    if not isinstance(data, dict) or "class_path" not in data:
        return recipe
    label = Entry(data["class_path"], "the config")
    loaded = class_of(label, [L.LightningDataModule], ("data", "class_path"))
    left_out = loaded.training_arguments if isinstance(loaded, type) and issubclass(loaded, StreamDataModule) else ()
    arguments = {key: value for key, value in (data.get("init_args") or {}).items() if key not in left_out}
    return recipe | {"data": data | {"init_args": arguments}}
