"""Parse a recipe: LightningCLI's config with `stages:`, a run folder and a trainer per stage."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.distributed import is_torchelastic_launched

from lit_mm.checkpoints.writing import FolderCheckpointIO
from lit_mm.commands.config_text import (
    COMMAND_LINE,
    Entry,
    config_files,
    config_of,
    flow,
    overrides,
    read_config,
    spoken,
)
from lit_mm.commands.data_keys import refuse_keys_of_other_classes, with_class_path
from lit_mm.commands.mistakes import cause_of, explain
from lit_mm.commands.options import RECIPE_OPTIONS
from lit_mm.commands.renamed import refuse_old_keys
from lit_mm.commands.signatures import check_entry, check_keys, class_of, signature_of, unknown_key
from lit_mm.commands.stage_keys import merged_recipe, parser_words
from lit_mm.distributed.names import check_strategy, fresh
from lit_mm.distributed.precision import Trainer
from lit_mm.errors import UserError
from lit_mm.module import MultimodalModule
from lit_mm.stages.stage import NAME, REPLACE, Stage, Train

ADDRESS = re.compile(r"(?P<address>stages\.[\w-]+[\w.-]*): (?P<problem>.*)", re.DOTALL)  # how a stage's errors begin
RUN_KEYS = ("config", "run_dir", "take_over", "init_from")  # of the launch, not of the experiment


KEYS: dict[str, Any] = {
    "model": MultimodalModule,
    "data": L.LightningDataModule,
    "stages": list[Stage] | None,
    "seed_everything": bool | int,
    **{option.name: option.type for option in RECIPE_OPTIONS},
}


def check_config(config: Entry) -> None:
    """Compare the keys and classes of a recipe with the signatures that they are for.

    Raises:
        UserError: a key or class does not exist, is of the wrong kind, or a required key is missing.
    """
    refuse_keys_of_other_classes(config)
    for key, entry in config.keys.items():
        if key == "trainer":
            check_keys(entry, signature_of(Trainer), "`trainer`", (key,))
        elif key in KEYS:
            check_entry(entry, KEYS[key], (key,))
        elif key != "config":
            raise UserError(unknown_key(entry, key, sorted([*KEYS, "trainer"]), "a recipe", ()))
    stages = config.keys.get("stages")
    if stages is None:
        return
    class_path = config.keys["data"].keys.get("class_path") if "data" in config.keys else None
    loaded = None
    if class_path is not None:
        loaded = class_of(class_path, [L.LightningDataModule], ("data", "class_path"))
    for name, stage in stages.items:
        if "name" in stage.keys and (not NAME.fullmatch(name) or name == REPLACE):
            raise UserError(
                f"{spoken(stage.keys['name'], ('stages', name))}: the name of a stage has 1 to 64 letters, digits, `_` "
                f"and `-`, and is not {REPLACE!r}, got {name!r}"
            )
        if loaded is not None and "data" in stage.keys:
            path = ("stages", name, "data")
            check_keys(stage.keys["data"], signature_of(loaded), str(class_path.value), path, complete=False)


def is_known(override: Entry) -> bool:
    """Whether an option of the command line is a key of a recipe; the parser reports the others."""
    (key, entry), *_ = override.keys.items()
    return key in KEYS or (key == "trainer" and entry.keys.keys() <= signature_of(Trainer).arguments.keys())


class RecipeCLI(LightningCLI):
    """LightningCLI that makes the model once, and data and trainer once per stage.

    Args:
        arguments: of the command line, or a config that was parsed before, as a checkpoint keeps it.
        command: for messages and help.
        label: what messages call a config that is not in a file.
        build: make the model too; otherwise only its arguments are checked.
        options: of the command itself, that a misspelt one may have meant.
    Raises:
        UserError: a mistake in the config or on the command line.
    """

    def __init__(
        self,
        arguments: Sequence[str] | Mapping[str, Any],
        command: str,
        label: str = "the kept config",
        build: bool = True,
        options: Sequence[str] = (),
    ) -> None:
        self.build, self.command_options = build, options
        if isinstance(arguments, Mapping):
            self.entries = config_of(arguments, label)
        else:
            arguments = [
                "--help" if argument == "--trainer.help" else argument for argument in _stage_choice(arguments)
            ]
            self.entries = Entry({}, COMMAND_LINE)
            for path in config_files(arguments):
                self.entries = merged_recipe(self.entries, read_config(path))
            refuse_old_keys(config_files(arguments), flow(self.entries))
            for override in overrides(arguments):
                if is_known(override):
                    self.entries = merged_recipe(self.entries, with_class_path(override))
            arguments = parser_words(arguments, self.entries)
        check_config(self.entries)
        try:
            super().__init__(
                model_class=MultimodalModule,
                datamodule_class=L.LightningDataModule,
                trainer_class=Trainer,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=None,
                auto_configure_optimizers=False,
                seed_everything_default=0,
                run=False,
                args=arguments,
                parser_kwargs={
                    "exit_on_error": False,
                    "allow_abbrev": False,
                    "prog": f"python -m lit_mm {command}",
                    "usage": f"python -m lit_mm {command} --config FILE [--KEY VALUE ...]",
                    "description": None,
                },
                trainer_defaults={"logger": False, "enable_checkpointing": False, "enable_model_summary": False},
            )
        except UserError as error:
            raise self.placed(error) from error
        except (ArgumentError, ValueError) as error:
            raise self.as_user_error(error) from error

    def placed(self, error: UserError) -> UserError:
        """An error about a key of a stage, with the file and line of that key."""
        match = ADDRESS.fullmatch(str(error))
        if match is None:
            return error
        entry = self.entries
        names = match["address"].split(".")
        for name in names:
            entry = dict(entry.items).get(name, entry)
        return UserError(f"{spoken(entry, names)}: {match['problem']}") if entry is not self.entries else error

    @contextmanager
    def placing(self) -> Iterator[None]:
        """Errors about keys of stages get the file and line of their key."""
        try:
            yield
        except UserError as error:
            raise self.placed(error) from error

    def as_user_error(self, error: Exception, base: str = "") -> Exception:
        """A parser's error as the `UserError` that it is; the error itself where a constructor failed otherwise.

        Args:
            base: see `explain`.
        """
        cause = cause_of(error)
        if cause is not None:
            # a new one: raising `cause` would make a circle
            return self.placed(UserError(f"{base}: {cause}" if base else str(cause)))
        if not isinstance(error, ArgumentError):
            return error
        options = [option for action in self.parser._actions for option in action.option_strings]
        options += self.command_options
        return UserError(explain(str(error), self.entries, [o for o in options if o.startswith("--")], base))

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--stages", type=list[Stage], help="the recipe, in order")
        for option in RECIPE_OPTIONS:
            bare = {"nargs": "?", "const": True} if option.type is bool else {}  # `--take_over` alone means true
            parser.add_argument(f"--{option.name}", type=option.type, default=option.default, help=option.help, **bare)

    def instantiate_classes(self) -> None:
        """Everything but the Trainer, which is made per stage."""
        for stage in self.config.stages or []:
            for part, train in stage.train.items():
                try:
                    Train(**train.as_dict())
                except UserError as error:  # it knows neither its stage nor its part
                    raise UserError(f"stages.{stage.name}.train.{part}: {error}") from error
        if not self.build:
            self.config_init = Namespace(stages=[Stage(**stage.as_dict()) for stage in self.config.stages or []])
            return
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
        selected = [stage for stage in stages if not self.config.only or stage.name in self.config.only]
        if selected and self.config.only and self.config.init_from:
            selected[0] = replace(selected[0], starts_from=None)  # it starts from what `init_from` names
        names = {stage.name for stage in selected}
        for stage in selected:
            if stage.starts_from in {stage.name for stage in stages} - names:
                raise UserError(
                    f"--stages leaves out {stage.starts_from!r}, and {stage.name!r} starts from its end. Name it as "
                    f"well, or run {stage.name!r} first of all and give the checkpoint with --init_from"
                )
        return selected

    def resolved(self) -> str:
        """The config with every default filled in, without what belongs to the launch."""
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        return yaml.safe_dump({key: value for key, value in config.items() if key not in RUN_KEYS}, sort_keys=False)

    def check_stages(self) -> None:
        """Refuse before the first step what would stop a later stage: its parts, its data's arguments and files.

        Raises:
            UserError: a stage trains an unknown part, changes an unknown argument, or has no data; the Trainer refuses;
                torchrun started other ranks.
        """
        with self.placing():
            self.model.check_recipe(self.stages)
        names = {stage.name for stage in self.config_init.stages or []}
        if unknown := sorted(self.model.stage_names - names):
            raise UserError(f"`model.init_args` names the stages {unknown}; the recipe has {sorted(names)}")
        for stage in self.stages:
            try:
                self.model.processors_of(stage)
            except UserError as error:  # it does not know its stage
                raise self.placed(UserError(f"stages.{stage.name}.inputs: {error}")) from error
        check_launch(self.trainer_of([], []))
        for stage in self.stages:
            with self.placing():
                if not len(self.data_of(stage).source()):
                    raise UserError(f"stages.{stage.name}.data: the data set is empty. Check this key and `data`")

    def data_of(self, stage: Stage | None) -> L.LightningDataModule:
        """The recipe's data module with what `stage`, if any, changes."""
        changes = stage.data if stage is not None else {}
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(L.LightningDataModule, "data")
        base = self.config.data.as_dict()
        config = {**base, "init_args": {**(base.get("init_args") or {}), **changes}}
        try:
            return parser.instantiate_classes(parser.parse_object({"data": config}, defaults=False)).data
        except (ArgumentError, ValueError) as error:
            raise self.as_user_error(error, f"stages.{stage.name}.data" if changes else "") from error

    def trainer_of(self, callbacks: list[L.Callback], loggers: list[Any], **changes: Any) -> L.Trainer:
        """A Trainer with a fresh strategy and optimizer.

        Raises:
            UserError: the Trainer refuses its arguments, such as an accelerator that this machine lacks.
        """
        config = {**self.config_init.trainer.as_dict(), **changes}
        config["callbacks"] = [*(config.get("callbacks") or []), *callbacks]
        config["logger"] = loggers or False
        config["plugins"] = [*(config.get("plugins") or []), FolderCheckpointIO()]
        config["use_distributed_sampler"] = False
        config["strategy"] = fresh(config["strategy"])
        try:
            trainer = Trainer(**config)
        except (MisconfigurationException, ValueError) as error:
            raise UserError(f"trainer: {str(error).splitlines()[0]} Correct `trainer:` in the config") from error
        check_strategy(trainer.strategy)
        return trainer


def check_launch(trainer: L.Trainer) -> None:
    """Refuse other ranks than torchrun started: they would wait for those that are missing, or each train alone.

    Raises:
        UserError: the numbers differ.
    """
    if not is_torchelastic_launched():
        return
    started, expected = int(os.environ["WORLD_SIZE"]), trainer.num_nodes * trainer.num_devices
    if started != expected:
        raise UserError(
            f"torchrun started {started} processes, the recipe asks for {expected}: trainer.num_nodes "
            f"{trainer.num_nodes} x trainer.devices {trainer.num_devices}. Set them to torchrun's --nnodes and "
            f"--nproc-per-node"
        )


def _stage_choice(arguments: Sequence[str]) -> list[str]:
    """`--stages pretrain,finetune` picks stages of the recipe; a list or mapping changes them."""
    words: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        key, equals, value = argument.partition("=")
        if key == "--stages":
            value = value if equals else next(rest, "")
            if not value.lstrip().startswith(("[", "{")):
                words.append(f"--only=[{value}]")
                continue
            argument = f"--stages={value}"
        words.append(argument)
    return words


def quiet() -> None:
    """Keep the terminal for what the user asked for."""
    warnings.filterwarnings("ignore", module="lightning|torch|jsonargparse")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def experiment_name(arguments: Sequence[str]) -> str:
    """The config file's name without its ending."""
    files = config_files(arguments)
    return Path(files[0]).stem if files else "unnamed"
