"""The folder of one run."""

from __future__ import annotations

import inspect
import json
import os
import re
import resource
import sys
import textwrap
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

import lightning as L
import psutil
import yaml

from lit_mm.checkpoints import manifest
from lit_mm.checkpoints.before import translate_config
from lit_mm.errors import UserError
from lit_mm.run.agreement import agree
from lit_mm.run.files import write_whole

# Config keys that may differ between launches of one run, because stream and loss do not depend on them
MAY_CHANGE = re.compile(
    r"(.*\.)?(num_workers|worker_start|micro_batch)|trainer\.(accelerator|devices|num_nodes|strategy)(\..*)?"
    r"|trainer\.(callbacks|logger|profiler|max_time|log_every_n_steps|default_root_dir|detect_anomaly|enable_\w+)(\..*)?"
    r"|only|track|step_timeout|checkpoint_every|keep_checkpoints|save_frozen|examine_every|examine_documents"
    r"|stages\.[\w-]+\.examine(\..*)?"
)
# Keys of data paths. They may differ if the checkpoint has digests of the data, which are then compared instead
PLACES = re.compile(r"(data\.init_args|stages\.[\w-]+\.data)\.(.*\.)?(path|heldout_path|images|places)")
INPUTS = re.compile(r"(model\.init_args|stages\.[\w-]+)\.inputs(_from)?(\..*)?")
PLAIN = (bool, int, float, str)  # types of defaults that a config holds as they are
ORIGIN = "init_from.json"  # record of the other run's checkpoint that a run starts from
LAUNCHED = time.monotonic() - (time.time() - psutil.Process().create_time())  # start of the process, monotonic clock


@dataclass(frozen=True)
class RunFolder:
    """The folder that holds all files of one run.

    Attributes:
        path: folder with `config.yaml`, `metrics.csv`, `accuracy.csv`, `summary.json`, pictures and `checkpoints/`.
    """

    path: Path

    @classmethod
    def open(cls, run_dir: str | None, experiment: str, trainer: L.Trainer | None = None) -> RunFolder:
        """Create or reopen a run folder.

        Args:
            run_dir: path of the folder. None means a new `runs/<experiment>/<time>`, or `runs/<experiment>/<id>` if the
                environment has an id of W&B (a sweep's agent sets it), so that the same id resumes the run.
            experiment: name of the experiment.
            trainer: Trainer of a run on several ranks, which all use the first rank's folder; None for one process.
        Raises:
            UserError: the folder cannot be created.
        """

        def make() -> str:
            path = Path(run_dir) if run_dir else None
            try:
                path = path or _named_by_wandb(experiment) or _new_folder(Path("runs") / experiment)
                (path / "checkpoints").mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"the run folder {str(path or Path('runs') / experiment)!r} cannot be made ({error.strerror}). "
                    "Choose one with --run_dir"
                ) from error
            return str(path)

        return cls(Path(make() if trainer is None else agree(trainer, "run_dir", make)))

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def point_latest(self) -> None:
        """Point `runs/latest` to this run. A working folder that is read-only gets no link, and a line says so."""
        try:
            _point_latest(self.path)
        except OSError as error:
            print(f"lit_mm: runs/latest does not point to this run ({error.strerror})", file=sys.stderr)

    def keep_config(self, config: str) -> None:
        """Write the resolved config; first check a resumed run's config, except for keys that change no result.

        Args:
            config: resolved config, YAML.
        Raises:
            UserError: the folder belongs to a run with another config.
        """
        file = self.path / "config.yaml"
        if file.exists() and (text := file.read_bytes()) != config.encode():
            earlier, current = _config_of(file, text), translate_config(yaml.safe_load(config))
            translated = with_new_arguments(translate_config(earlier))
            keys = [key for key in differences(translated, current) if not MAY_CHANGE.fullmatch(key)]
            if translate_config(earlier) != earlier:  # the version before wrote it, without the family's default inputs
                keys = [key for key in keys if not INPUTS.fullmatch(key) or _is_set(key, translated, current)]
            saved = manifest.newest(self.checkpoints)
            is_moved = bool(saved and keys) and all(PLACES.fullmatch(key) for key in keys)
            if is_moved and "data" in manifest.read(saved.path).content:
                keys = []
            if keys and saved:
                fresh = "choose another folder with --run_dir"
                if not any(key.startswith("model") for key in keys):
                    fresh += f"; to begin there from the weights of this run: --init_from {self.path}"
                raise UserError(
                    f"{str(self.path)!r} has a run with another config, which differs in "
                    f"{listed(keys, translated, current)}. Resume with the same config, or {fresh}"
                )
            for record in ("wandb_id", "wandb_steps.json", ORIGIN) if keys else ():  # records of another run
                (self.path / record).unlink(missing_ok=True)
        write_whole(file, config)


def check_run_dir(run_dir: str | None) -> None:
    """Refuse a name that no folder can have, or that the user may not look at.

    Raises:
        UserError: see `RunFolder.open`.
    """
    try:
        os.stat(run_dir or ".")
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:  # ValueError: it has a NUL character
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"the run folder {run_dir!r} cannot be made ({reason}). Choose one with --run_dir") from error


def _config_of(file: Path, text: bytes) -> dict[str, Any]:
    """Parse the config of a run.

    Raises:
        UserError: the file is damaged.
    """
    try:
        config = yaml.safe_load(text.decode())
        if isinstance(config, dict):
            return config
        problem = "no mapping"
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = type(error).__name__
    raise UserError(
        f"{str(file)!r} is damaged ({problem}). Every checkpoint of the run has a copy of config.yaml: "
        "copy one here. If the run has no checkpoint, remove the file"
    )


def _named_by_wandb(experiment: str) -> Path | None:
    """Return the folder of a run whose id W&B has set in the environment; None without an id."""
    identity = os.environ.get("WANDB_RUN_ID")
    if identity and not re.fullmatch(r"[\w-][\w.-]*", identity):
        raise UserError(f"WANDB_RUN_ID is {identity!r}, which names no folder. Choose a run folder with --run_dir")
    return Path("runs") / experiment / identity if identity else None


def _new_folder(parent: Path) -> Path:
    """Create a folder named by the time; a number distinguishes runs that start in the same second."""
    start = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for number in count(1):
        path = parent / (start if number == 1 else f"{start}_{number}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            if not path.is_dir():  # the parent is a file
                raise


def _point_latest(path: Path) -> None:
    runs = Path("runs")
    runs.mkdir(exist_ok=True)
    link = runs / f".latest-{uuid.uuid4().hex}"
    link.symlink_to(os.path.relpath(path.resolve(), runs.resolve()), target_is_directory=True)
    try:
        os.replace(link, runs / "latest")
    finally:
        link.unlink(missing_ok=True)  # such as when runs/latest is a folder


def with_new_arguments(config: Any) -> Any:
    """Return a config with the defaults of arguments that its classes have got since it was written.

    A class that cannot be imported any more keeps its arguments; the comparison with the current config names it.
    """
    if isinstance(config, list):
        return [with_new_arguments(item) for item in config]
    if not isinstance(config, Mapping):
        return config
    complete = {key: with_new_arguments(item) for key, item in config.items()}
    if isinstance(config.get("class_path"), str):
        module, _, name = config["class_path"].rpartition(".")
        if module in sys.modules and (owner := getattr(sys.modules[module], name, None)):
            defaults = {key: p.default for key, p in inspect.signature(owner).parameters.items()}
            plain = {key: value for key, value in defaults.items() if value is None or isinstance(value, PLAIN)}
            complete["init_args"] = plain | (complete.get("init_args") or {})
    return complete


def differences(a: Any, b: Any, key: str = "") -> list[str]:
    """Return the dotted keys whose values differ between two configs. Null and an empty mapping are equal.

    {"stages": [{"name": "a", "clip": 1}]}, {"stages": [{"name": "a", "clip": 2}]} -> ["stages.a.clip"]

    Args:
        a, b: configs.
        key: dotted key of both in the whole config.
    """
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return [
            d for k in sorted(a.keys() | b.keys()) for d in differences(a.get(k), b.get(k), f"{key}.{k}" if key else k)
        ]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        items = zip(_names(b), a, b, strict=True)
        return [d for name, x, y in items for d in differences(x, y, f"{key}.{name}")]
    return [] if a == b or (a in (None, {}) and b in (None, {})) else [key]


def value_at(config: Any, key: str) -> Any:
    """Return the value of a dotted key, in which stages have their names; None if there is none.

    {"stages": [{"name": "a", "clip": 1}]}, "stages.a.clip" -> 1
    """
    if not key:
        return config
    if isinstance(config, list):
        config = dict(zip(_names(config), config, strict=True))
    if not isinstance(config, Mapping):
        return None
    for name, value in config.items():  # a name may have dots
        if key == str(name) or key.startswith(f"{name}."):
            return value_at(value, key[len(str(name)) + 1 :])
    return None


def listed(keys: Sequence[str], there: Any, here: Any) -> str:
    """Name the first keys of a difference with both values, such as "seed_everything (0 there, 1 here)".

    Args:
        keys: dotted keys.
        there: earlier config.
        here: current config.
    """
    values = ((key, value_at(there, key), value_at(here, key)) for key in keys[:4])
    text = ", ".join(f"{key} ({_short(before)} there, {_short(now)} here)" for key, before, now in values)
    return f"{text} and {len(keys) - 4} more" if len(keys) > 4 else text


def _names(items: list[Any]) -> list[str]:
    """Return the names of a list's items in dotted keys: stages have their names, other items their numbers."""
    return [
        item["name"] if isinstance(item, Mapping) and "name" in item else str(number)
        for number, item in enumerate(items)
    ]


def _short(value: Any) -> str:
    """Return a value of a config in one short line."""
    return textwrap.shorten(json.dumps(value, default=str, ensure_ascii=False), 60, placeholder=" ...")


def _is_set(key: str, *configs: Any) -> bool:
    """Return True if all configs have a value other than null under a dotted key."""
    return all(value_at(config, key) not in (None, {}) for config in configs)


def peak_memory_mb() -> float:
    """Return the peak resident memory of this process plus that of its largest finished worker, MB."""
    kilobytes = (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    )
    return kilobytes / 1024
