"""The parser of recipes: LightningCLI's config with `stages:`, a run folder and a trainer per stage."""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from lightning.pytorch.callbacks import Checkpoint, Timer
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
    without_allow,
)
from lit_mm.commands.data_keys import refuse_keys_of_other_classes, with_class_path
from lit_mm.commands.mistakes import cause_of, explain, refused_by_constructor
from lit_mm.commands.options import RECIPE_OPTIONS
from lit_mm.commands.published_arguments import with_published_arguments
from lit_mm.commands.renamed import refuse_old_keys
from lit_mm.commands.signatures import (
    IMPORT_PATH,
    check_entry,
    check_keys,
    check_package,
    class_of,
    signature_of,
    unknown_key,
)
from lit_mm.commands.source_names import check_model_sources, check_stage_sources
from lit_mm.commands.stage_keys import merged_recipe, parser_words
from lit_mm.commands.trainer_keys import ARGUMENTS as TRAINER_ARGUMENTS
from lit_mm.commands.trainer_keys import CALLBACKS as TRAINER_CALLBACKS
from lit_mm.distributed.names import check_name, check_strategy, fresh
from lit_mm.distributed.precision import Trainer
from lit_mm.distributed.zero import ZeRO
from lit_mm.errors import UserError, first_line
from lit_mm.module import MultimodalModule
from lit_mm.prompts.prompt import Prompt
from lit_mm.samples.layout import Layout
from lit_mm.stages.schedule import Constant, Schedule
from lit_mm.stages.stage import NAME, REPLACE, Stage, Train, of_model
from lit_mm.stream.datamodule import StreamDataModule
from lit_mm.tiling.plan import Tiling

# Beginnings of errors about a key without its file
ADDRESS = re.compile(r"(?P<address>(stages|trainer)\.[\w-]+[\w.-]*): (?P<problem>.*)", re.DOTALL)
STAGE_PARTS = {"schedule": Schedule, "inputs.tiling": Tiling, "inputs.layout": Layout, "inputs.prompt": Prompt}
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")  # precisions of a device and of DDP
RUN_KEYS = ("config", "run_dir", "take_over", "other_data", "init_from")  # keys of the launch
MOST_SEED = 2**32 - 1  # of numpy
REHEARSED_QUESTIONS = 2  # of every benchmark and source that a stage examines


KEYS: dict[str, Any] = {
    "model": MultimodalModule,
    "data": L.LightningDataModule,
    "stages": list[Stage] | None,
    "seed_everything": bool | int,
    **{option.name: option.type for option in RECIPE_OPTIONS},
}


def check_config(config: Entry) -> None:
    """Compare the keys and classes of a recipe with signatures.

    Raises:
        UserError: a key or class does not exist, is of the wrong kind, or a required key is missing.
    """
    check_packages(config, ())
    refuse_keys_of_other_classes(config)
    for key, entry in config.keys.items():
        if key == "trainer":
            if not isinstance(entry.value, dict):
                raise UserError(f"{spoken(entry, (key,))}: expected keys of the Trainer, got {flow(entry)}")
            check_keys(entry, signature_of(Trainer), "`trainer`", (key,))
        elif key in KEYS:
            check_entry(entry, KEYS[key], (key,))
        elif key != "config":
            raise UserError(unknown_key(entry, key, sorted([*KEYS, "trainer"]), "a recipe", ()))
    if (seed := config.keys.get("seed_everything")) is not None:
        number = yaml.safe_load(flow(seed))
        if number is True:
            raise UserError(
                f"{spoken(seed, ('seed_everything',))}: true draws another seed at every launch, so a run could "
                "not be resumed. Write a number, such as 0"
            )
        if isinstance(number, int) and not 0 <= number <= MOST_SEED:
            raise UserError(f"{spoken(seed, ('seed_everything',))}: a seed is from 0 to {MOST_SEED}, got {number}")
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


def check_trainer(trainer: Entry) -> None:
    """Refuse arguments of the Trainer, and callbacks, that a key of the recipe replaces.

    Raises:
        UserError: there is such an argument; the message names the key.
    """
    arguments = signature_of(Trainer).arguments
    for key in TRAINER_ARGUMENTS:
        entry = trainer.keys.get(key.name)
        if entry is None or key.use != "refused":
            continue
        if yaml.safe_load(flow(entry)) not in (None, arguments[key.name].default):
            raise UserError(f"{spoken(entry, ('trainer', key.name))}: a recipe does not take this key. {key.text}")
    callbacks = trainer.keys.get("callbacks", Entry([], COMMAND_LINE))
    for name, entry in callbacks.items if isinstance(callbacks.value, list) else [("", callbacks)]:
        class_path = entry.keys.get("class_path", entry).value
        for key in TRAINER_CALLBACKS:
            if key.use == "refused" and isinstance(class_path, str) and class_path.rpartition(".")[2] == key.name:
                place = spoken(entry, ("trainer", "callbacks", *filter(None, [name])))
                raise UserError(f"{place}: a recipe does not take {key.name}. {key.text}")


def check_packages(entry: Entry, path: tuple[str, ...]) -> None:
    """Refuse every `class_path` outside the packages that may be imported.

    Raises:
        UserError: there is one; the message has its key and the way to allow the package.
    """
    for name, inner in entry.items:
        if name == "class_path" and isinstance(inner.value, str) and IMPORT_PATH.fullmatch(inner.value):
            try:
                check_package(inner.value)
            except UserError as error:
                raise UserError(f"{spoken(inner, (*path, name))}: {error}") from error
        check_packages(inner, (*path, name))


def nulls_of(entry: Entry, key: str = "") -> Iterator[str]:
    """Yield the dotted keys of the nulls of an option."""
    if entry.value is None:
        yield key
    for name, inner in entry.keys.items():
        yield from nulls_of(inner, f"{key}.{name}" if key else name)


def is_known(override: Entry) -> bool:
    """Return True if an option is a key of a recipe. The parser reports other options."""
    (key, entry), *_ = override.keys.items()
    return key in KEYS or (key == "trainer" and entry.keys.keys() <= signature_of(Trainer).arguments.keys())


class RecipeCLI(LightningCLI):
    """LightningCLI that makes the model once, and data and trainer once per stage.

    Args:
        arguments: words of the command line, or a parsed config such as a checkpoint's.
        command: name of the command, for messages and help.
        label: name in messages of a config that is not in a file.
        build: True makes the model, False only checks its arguments.
        options: options of the command, which are candidates for a misspelt one.
        with_data: False opens no data, for a command that needs none.
        data_first: True opens the data of all stages before it makes the model, which may take minutes.
        entries: the parsed config with files and lines, for messages; None for a config that is not in a file.

    `--allow PACKAGE` on the command line lets the config name classes of another package.

    Raises:
        UserError: the config or the command line has a mistake.
    """

    def __init__(
        self,
        arguments: Sequence[str] | Mapping[str, Any],
        command: str,
        label: str = "the kept config",
        build: bool = True,
        options: Sequence[str] = (),
        with_data: bool = True,
        data_first: bool = False,
        entries: Entry | None = None,
    ) -> None:
        self.build, self.command_options, self.with_data, self.data_first = build, options, with_data, data_first
        self.opened: dict[str, StreamDataModule] = {}  # stage -> its data, opened for the check of stages
        self.words = [] if isinstance(arguments, Mapping) else list(arguments)
        self.nulls: list[str] = []
        if isinstance(arguments, Mapping):
            if not with_data:
                arguments = {key: value for key, value in arguments.items() if key != "data"}
            self.entries = entries or config_of(arguments, label)
            if entries is not None:
                refuse_old_keys([label], flow(entries))
        else:
            arguments = _stage_choice(without_allow(arguments))
            self.entries = Entry({}, COMMAND_LINE)
            for path in config_files(arguments):
                self.entries = merged_recipe(self.entries, read_config(path))
            refuse_old_keys(config_files(arguments), flow(self.entries))
            for override in overrides(arguments):
                self.nulls += nulls_of(override)
                if is_known(override):
                    self.entries = merged_recipe(self.entries, with_class_path(override))
            check_packages(self.entries, ())
            self.entries, published = with_published_arguments(self.entries)
            arguments = [*parser_words(arguments, self.entries), *published]
            if "trainer" in self.entries.keys:
                check_trainer(self.entries.keys["trainer"])
        check_config(self.entries)
        try:
            super().__init__(
                model_class=MultimodalModule,
                datamodule_class=L.LightningDataModule if with_data else None,
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
                trainer_defaults={"enable_model_summary": False},
            )
        except UserError as error:
            raise self.with_line(error) from error
        except (ArgumentError, ValueError) as error:
            raise self.as_user_error(error) from error

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the words, and put back the nulls of options that the parser has turned into the text None.

        jsonargparse writes the value of a part's part (`--model.init_args.vision.init_args.weights null`) as Python
        text before it reads it again, and None is a text in YAML.
        """
        super().parse_arguments(parser, args)
        for key in self.nulls:
            if self.config.get(key) == str(None):
                self.config[key] = None

    def with_line(self, error: UserError) -> UserError:
        """Return an error about a key of a stage or of the Trainer with the file and line of the key."""
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
        """Add file and line to errors about keys of stages inside a `with` block."""
        try:
            yield
        except UserError as error:
            raise self.with_line(error) from error

    def as_user_error(self, error: Exception, base: str = "") -> Exception:
        """Return the `UserError` of a parser's error; the unchanged error if a constructor failed in another way.

        Args:
            base: see `explain`.
        """
        cause = cause_of(error)
        if cause is not None:
            # a new error, because raising `cause` would make a circle
            return self.with_line(UserError(f"{base}: {cause}" if base else str(cause)))
        if not isinstance(error, ArgumentError):
            refusal = refused_by_constructor(str(error), self.entries)
            return error if refusal is None else UserError(refusal)
        options = [option for action in self.parser._actions for option in action.option_strings]
        options += self.command_options
        return UserError(
            explain(str(error), self.entries, [o for o in options if o.startswith("--")], base, self.words)
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--stages", type=list[Stage], help="the recipe, in order")
        for option in RECIPE_OPTIONS:
            bare = {"nargs": "?", "const": True} if option.type is bool else {}  # `--take_over` alone is true
            parser.add_argument(f"--{option.name}", type=option.type, default=option.default, help=option.help, **bare)

    def instantiate_classes(self) -> None:
        """Make model and data. A Trainer is made per stage.

        Raises:
            UserError: a part refuses its arguments. The message has the stage and the part.
        """
        self.time_limit = time_limit(self.config.trainer.max_time)
        for stage in self.config.stages or []:
            for part, train in stage.train.items():
                try:
                    Train(**train.as_dict())
                except UserError as error:  # the error knows neither its stage nor its part
                    raise UserError(f"stages.{stage.name}.train.{part}: {error}") from error
            for key, kind in STAGE_PARTS.items():
                check_part(stage, key, kind)
        if not self.build:
            self.config_init = Namespace(stages=[Stage(**stage.as_dict()) for stage in self.config.stages or []])
            return
        if self.data_first:
            for stage in self.config.stages or []:
                if not self.config.only or stage.name in self.config.only:
                    self.open_data(Stage(**stage.as_dict()))
        config = self.config if self.with_data else self.config.clone()
        if not self.with_data:
            config.pop("data", None)
        self.config_init = self.parser.instantiate_classes(config)
        self.model = self._get(self.config_init, "model")
        self.datamodule = self._get(self.config_init, "data") if self.with_data else None

    @property
    def seed(self) -> int:
        return int(self.config.seed_everything or 0)

    @property
    def rehearsal(self) -> int:
        """Optimizer steps of each stage in a rehearsal, `trainer.fast_dev_run`; 0 for a real run.

        Raises:
            UserError: the number is below 0.
        """
        steps = int(self.config.trainer.fast_dev_run)
        if steps < 0:
            raise self.with_line(UserError(f"trainer.fast_dev_run: expected true, or a number of steps, got {steps}"))
        return steps

    @property
    def stages(self) -> list[Stage]:
        """Return the stages to run: all stages of the recipe, or those of --stages. A rehearsal shortens them.

        Raises:
            UserError: --stages names an unknown stage, or leaves out the origin of a branch, or a stage does not fit
                the model, see `lit_mm.stages.stage.of_model`.
        """
        stages = list(self.config_init.stages or [])
        unknown = sorted(set(self.config.only) - {stage.name for stage in stages})
        if unknown:
            raise UserError(f"--stages names {unknown}; the recipe has {[stage.name for stage in stages]}")
        selected = [stage for stage in stages if not self.config.only or stage.name in self.config.only]
        if selected and self.config.only and self.config.init_from:
            selected[0] = replace(selected[0], starts_from=None)  # the stage starts from `init_from`
        names = {stage.name for stage in selected}
        for stage in selected:
            if stage.origin in {stage.name for stage in stages} - names:
                raise UserError(
                    f"--stages leaves out {stage.origin!r}, but {stage.name!r} starts from its end. Add it, or run "
                    f"only {stage.name!r} first and pass the checkpoint with --init_from"
                )
        if self.build:
            with self.placing():
                parts, added = self.model.base_parts(), self.model.added_parts()
                selected = [of_model(stage, parts, added) for stage in selected]
        return [rehearsed(stage, self.rehearsal) for stage in selected] if self.rehearsal else selected

    def resolved(self) -> str:
        """Return the config with all defaults and without the keys of the launch."""
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        return yaml.safe_dump({key: value for key, value in config.items() if key not in RUN_KEYS}, sort_keys=False)

    def check_stages(self) -> None:
        """Refuse, before the first step, mistakes that would stop a later stage: wrong parts, wrong arguments or
        missing files of its data, and samples that the index of lengths lists as untrainable.

        Raises:
            UserError: a stage trains an unknown part, changes an unknown argument, or has no data; `by_source` names an
                unknown source; the Trainer refuses its arguments; or torchrun started another number of ranks.
        """
        with self.placing():
            self.model.check_recipe(self.stages)
        names = {stage.name for stage in self.config_init.stages or []}
        if unknown := sorted(self.model.stage_names - names):
            raise UserError(f"`model.init_args` names the stages {unknown}; the recipe has {sorted(names)}")
        for stage in self.stages:
            try:
                self.model.processors_of(stage)
            except UserError as error:  # the error does not know its stage
                raise self.with_line(UserError(f"stages.{stage.name}.inputs: {error}")) from error
        check_launch(self.trainer_of([], []))
        by_stage: list[StreamDataModule] = []
        for stage in self.stages:
            data = self.opened.get(stage.name) or self.open_data(stage)
            with self.placing():
                check_stage_sources(stage, data)
                by_stage.append(data)
                for processor in self.model.processors_of(stage).values():
                    data.refuse_indexed_faults(processor, stage.name)
        if len(by_stage) == len(self.config_init.stages or []) and by_stage:
            held_out = partial(self.datamodule.heldout, self.config.examine_documents)
            check_model_sources(self.model.processor, by_stage, held_out)

    def open_data(self, stage: Stage) -> StreamDataModule:
        """Open the data of a stage for the check of stages.

        Raises:
            UserError: see `data_of`; a file is missing, or there is no sample.
        """
        with self.placing():
            data = self.data_of(stage)
            if not len(data.source()):
                raise UserError(f"stages.{stage.name}.data: the data set is empty. Check this key and `data`")
        self.opened[stage.name] = data
        return data

    def data_of(self, stage: Stage | None) -> StreamDataModule:
        """Make the recipe's data module with the changes of a stage.

        Raises:
            UserError: an argument is refused, or the class does not plan the order of its samples.
        """
        changes = stage.data if stage is not None else {}
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(L.LightningDataModule, "data")
        base = self.config.data.as_dict()
        config = {**base, "init_args": {**(base.get("init_args") or {}), **changes}}
        try:
            module = parser.instantiate_classes(parser.parse_object({"data": config}, defaults=False)).data
        except (ArgumentError, ValueError) as error:
            raise self.as_user_error(
                error, f"stages.{stage.name}.data" if stage is not None and changes else ""
            ) from error
        if not isinstance(module, StreamDataModule):
            raise UserError(
                f"data.class_path: {base['class_path']} does not plan the order of its samples, by which runs resume. "
                "Extend lit_mm.stream.datamodule.StreamDataModule, whose `source` returns documents by number"
            )
        return module

    def trainer_of(self, callbacks: list[L.Callback], loggers: list[Any], **changes: Any) -> L.Trainer:
        """Make a Trainer with a new strategy.

        Raises:
            UserError: the Trainer refuses its arguments, such as an accelerator that this machine lacks.
        """
        config = {**self.config_init.trainer.as_dict(), **changes}
        extra = config.get("callbacks") or []
        extra = copy.deepcopy(extra if isinstance(extra, list) else [extra])  # each stage has its own
        config["callbacks"] = [*extra, *callbacks]
        config["enable_checkpointing"] = any(isinstance(callback, Checkpoint) for callback in extra)
        config["logger"] = loggers or False
        config["plugins"] = [*(config.get("plugins") or []), FolderCheckpointIO()]
        config["use_distributed_sampler"] = False
        check_name(config["strategy"])
        config["strategy"] = fresh(config["strategy"])
        config |= {"max_time": None, "fast_dev_run": False}  # both belong to the whole run, see `fit`
        config["log_every_n_steps"] = 1
        try:
            trainer = Trainer(**config)
        except (MisconfigurationException, ValueError, TypeError, ModuleNotFoundError) as error:
            raise UserError(f"trainer: {first_line(error)}. Correct `trainer:` in the config") from error
        check_strategy(trainer.strategy)
        if trainer.precision not in PRECISIONS and not isinstance(trainer.strategy, ZeRO):
            raise UserError(
                f"trainer.precision: expected auto, {', '.join(PRECISIONS)}, got {trainer.precision!r}. Weights "
                "in bf16 need ZeRO: trainer.strategy zero2 with bf16-true"
            )
        return trainer


def check_part(stage: Namespace, key: str, kind: type) -> None:
    """Make a part of a stage once, so that an error of its constructor names the stage.

    Args:
        stage: parsed stage.
        key: key below the stage, such as schedule or inputs.tiling.
        kind: type of the part.
    Raises:
        UserError: the part refuses its arguments.
    """
    config = stage.get(key)
    if not isinstance(config, Namespace):  # null, or a word such as `template`
        return
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, "part")
    try:
        parser.instantiate_classes(Namespace(part=config.clone()))
    except (UserError, ArgumentError, ValueError) as error:
        if (cause := cause_of(error)) is None:
            raise
        raise UserError(f"stages.{stage.name}.{key}: {cause}") from error


def time_limit(limit: str | timedelta | Mapping[str, int] | None) -> float | None:
    """Return `trainer.max_time` in seconds; None for no limit.

    Raises:
        UserError: the value is not a duration.
    """
    if limit is None:
        return None
    try:
        seconds = Timer(duration=limit if isinstance(limit, (str, timedelta)) else dict(limit))._duration
    except (MisconfigurationException, TypeError):
        seconds = 0
    if seconds <= 0:
        raise UserError(
            f"trainer.max_time: expected days:hours:minutes:seconds above zero, such as 00:12:00:00, or a mapping such "
            f"as {{hours: 12}}, got {limit!r}"
        )
    return seconds


def rehearsed(stage: Stage, steps: int) -> Stage:
    """Return a stage of a few optimizer steps, in which every part learns and few questions are asked."""
    train = {part: replace(each, from_step=0) for part, each in stage.train.items()}
    examine = None if stage.examine is None else replace(stage.examine, questions=REHEARSED_QUESTIONS)
    return replace(stage, max_steps=steps, schedule=Constant(warmup=0), train=train, inputs_from={}, examine=examine)


def check_launch(trainer: L.Trainer) -> None:
    """Refuse a number of ranks that differs from torchrun's: ranks would wait for missing ones, or each train alone.

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
    """Return the names in `--stages pretrain,finetune`, which selects stages. A list or mapping changes stages.

    Raises:
        UserError: the value has commas and no name.
    """
    words: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        key, equals, value = argument.partition("=")
        if key == "--stages":
            value = value if equals else next(rest, "")
            if value in ("None", "null"):  # a sweep's empty value means all stages
                continue
            if not value.lstrip().startswith(("[", "{")):
                names = [name for name in map(str.strip, value.split(",")) if name]
                if not names and value.strip():
                    raise UserError(f"--stages takes names that are separated by commas, got {value!r}")
                words.append(f"--only={json.dumps(names)}")
                continue
            argument = f"--stages={value}"
        words.append(argument)
    return words


def quiet() -> None:
    """Silence warnings and logs of libraries."""
    warnings.filterwarnings("ignore", module="lightning|torch|jsonargparse")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def experiment_name(arguments: Sequence[str]) -> str:
    """Return the config file's name without its ending."""
    files = config_files(arguments)
    return Path(files[0]).stem if files else "unnamed"
