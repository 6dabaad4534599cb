"""Open a trained model: from a checkpoint, or from the run folder that holds it."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import yaml

from lit_mm.checkpoints import manifest, reading
from lit_mm.checkpoints.before import translate_config
from lit_mm.commands.recipe import RecipeCLI, quiet
from lit_mm.errors import UserError
from lit_mm.module import MultimodalModule, family_of


def open_trained(
    place: str, config: str | None = None, stage: str | None = None
) -> tuple[MultimodalModule, L.LightningDataModule, Path]:
    """The model with its weights and precision, the data module of its recipe, and the checkpoint's path.

    Args:
        place: a run folder (its newest checkpoint) or a checkpoint.
        config: build the model from this config file instead of the one kept in the checkpoint.
        stage: name of the stage whose newest checkpoint is opened; None: the newest of the run.
    """
    quiet()
    path = manifest.find(place, stage)
    try:
        checkpoint = reading.read(path)
    except manifest.Damaged as error:
        whole = reading.newest_whole(path.parent)
        hint = f". The newest whole checkpoint there is {str(whole.path)!r}" if whole else ""
        raise UserError(f"{error}{hint}") from error
    if config is not None:
        cli = RecipeCLI(["--config", config], "evaluate")
    else:
        recipe = translate_config(yaml.safe_load(checkpoint.config))
        cli = RecipeCLI(recipe, "evaluate", f"the config in {str(path)!r}")
    module = cli.model
    reading.load_weights(module, checkpoint, family_of(module))
    # Its precision is the model's; one process is enough, however many have trained
    module._trainer = cli.trainer_of([], [], strategy="auto", devices=1, num_nodes=1)
    return module.to(module.trainer.strategy.root_device), cli.datamodule, path
