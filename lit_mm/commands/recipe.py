"""Parse a recipe: LightningCLI's config with `stages:`, a run folder and a trainer per stage."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lit_mm.checkpoints import AtomicCheckpointIO
from lit_mm.errors import UserError
from lit_mm.module import MultimodalModule
from lit_mm.stages import Stage

RUN_KEYS = ("config", "run_dir", "init_from")  # of the launch, not of the experiment


class RecipeCLI(LightningCLI):
    """LightningCLI that makes the model once, and data and trainer once per stage."""

    def __init__(self, arguments: Sequence[str], command: str) -> None:
        try:
            super().__init__(
                model_class=MultimodalModule,
                datamodule_class=L.LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=None,
                auto_configure_optimizers=False,
                seed_everything_default=0,
                run=False,
                args=_stage_choice(arguments),
                parser_kwargs={"exit_on_error": False, "prog": f"python -m lit_mm {command}", "description": None},
                trainer_defaults={"logger": False, "enable_checkpointing": False, "enable_model_summary": False},
            )
        except ArgumentError as error:
            raise UserError(_short(str(error))) from error

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--stages", type=list[Stage], help="the recipe, in order")
        parser.add_argument(
            "--only",
            type=list[str],
            default=[],
            help="names of the stages to run; also `--stages name,name` (default: all)",
        )
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="run folder (default: runs/<experiment>/<time>); resumes if it holds a run",
        )
        parser.add_argument(
            "--init_from", type=str | None, default=None, help="start from the weights of this run folder or checkpoint"
        )
        parser.add_argument("--checkpoint_every", type=int, default=100, help="optimizer steps between checkpoints")
        parser.add_argument(
            "--examine_every",
            type=int,
            default=0,
            help="optimizer steps between examinations on held-out documents (0: at stage ends)",
        )
        parser.add_argument("--examine_documents", type=int, default=90, help="held-out documents of an examination")
        parser.add_argument(
            "--track", type=bool, default=True, help="keep a W&B run; offline when no account is configured"
        )

    def instantiate_classes(self) -> None:
        """Everything but the Trainer, which is made per stage."""
        self.config_init = self.parser.instantiate_classes(self.config)
        self.model = self._get(self.config_init, "model")
        self.datamodule = self._get(self.config_init, "data")

    @property
    def seed(self) -> int:
        return int(self.config.seed_everything or 0)

    @property
    def stages(self) -> list[Stage]:
        stages = list(self.config_init.stages or [])
        unknown = sorted(set(self.config.only) - {stage.name for stage in stages})
        if unknown:
            raise UserError(f"--stages names {unknown}; the recipe has {[stage.name for stage in stages]}")
        return [stage for stage in stages if not self.config.only or stage.name in self.config.only]

    def resolved(self) -> str:
        """The config with every default filled in, without what belongs to the launch."""
        kept = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        return yaml.safe_dump({key: value for key, value in kept.items() if key not in RUN_KEYS}, sort_keys=False)

    def data_of(self, stage: Stage) -> L.LightningDataModule:
        """The recipe's data module with what `stage` changes."""
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(L.LightningDataModule, "data")
        base = self.config.data.as_dict()
        changed = {**base, "init_args": {**base.get("init_args", {}), **stage.data}}
        try:
            return parser.instantiate_classes(parser.parse_object({"data": changed})).data
        except ArgumentError as error:
            raise UserError(f"stage {stage.name!r}, data: {_short(str(error))}") from error

    def trainer_of(self, callbacks: list[L.Callback], loggers: list[Any], **changes: Any) -> L.Trainer:
        """A Trainer with a fresh strategy and optimizer."""
        config = {**self.config_init.trainer.as_dict(), **changes}
        config["callbacks"] = [*(config.get("callbacks") or []), *callbacks]
        config["logger"] = loggers or False
        config["plugins"] = [*(config.get("plugins") or []), AtomicCheckpointIO()]
        config["use_distributed_sampler"] = False
        return L.Trainer(**config)


def _stage_choice(arguments: Sequence[str]) -> list[str]:
    """`--stages pretrain,finetune` picks stages of the recipe; a list or mapping still replaces it."""
    chosen: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        key, equals, value = argument.partition("=")
        if key == "--stages":
            value = value if equals else next(rest, "")
            if not value.lstrip().startswith(("[", "{")):
                chosen.append(f"--only=[{value}]")
                continue
            argument = f"--stages={value}"
        chosen.append(argument)
    return chosen


def _short(message: str) -> str:
    """The telling lines of a parser's error."""
    lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
    return "\n  ".join(lines[:1] + lines[-2:] if len(lines) > 3 else lines)


def quiet() -> None:
    """Keep the terminal for what the user asked for."""
    warnings.filterwarnings("ignore", module="lightning|torch|jsonargparse")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def experiment_name(arguments: Sequence[str]) -> str:
    """The config file's name without its ending."""
    for here, following in zip(arguments, [*arguments[1:], ""], strict=True):
        key, equals, value = here.partition("=")
        if key in ("--config", "-c"):
            return Path(value if equals else following).stem
    return "unnamed"
