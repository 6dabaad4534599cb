"""Finds run folders and reads the state, the figures and the cost of each run. No torch is imported."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from lit_mm.checkpoints import manifest
from lit_mm.commands.results import read_summary
from lit_mm.errors import UserError
from lit_mm.run.lock import living_holder

CONFIG, SWEEP = "config.yaml", "sweep.yaml"
STATES = ("running", "finished", "stopped", "empty")
TAIL = 1 << 16  # bytes at the end of a table, which hold its last row


@dataclass(frozen=True)
class RunRecord:
    """The state, the figures and the cost of a run, read from its folder.

    Attributes:
        path: the folder.
        family: class of the model, such as Llava.
        stages: names of the stages to run, in order.
        state: "running" while a job uses the folder, "finished" after the last stage, "stopped" before it, "empty"
            without a checkpoint.
        stage: stage of the newest checkpoint; "" without one.
        step: last optimizer step, counted through all stages; 0 without one.
        seconds: wall time of the run; None before the first step.
        accuracy: share of right answers at the end of the run; None before.
        blind: the same with the pictures of other documents.
        last_write: time of the last step or of the launch, seconds since the epoch.
    """

    path: Path
    family: str
    stages: tuple[str, ...]
    state: Literal["running", "finished", "stopped", "empty"]
    stage: str
    step: int
    seconds: float | None
    accuracy: float | None
    blind: float | None
    last_write: float


def run_folders(root: Path) -> Iterator[Path]:
    """Yield the run folders below a folder, or the folder itself if it is one. Links are not followed.

    Raises:
        UserError: there is no such folder.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {str(root)!r} with runs")
    for place, names, _ in os.walk(root):
        if config_of_run(Path(place)) is not None:
            names.clear()
            yield Path(place)
        names[:] = sorted(name for name in names if not name.startswith(".") and name != "wandb")


def config_of_run(folder: Path) -> Mapping[str, Any] | None:
    """Return the config of a run folder; None for any other folder."""
    try:
        if not (folder / "checkpoints").is_dir():
            return None
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    is_ours = (
        isinstance(config, dict) and isinstance(config.get("stages"), list) and isinstance(config.get("model"), dict)
    )
    if not is_ours or not all(isinstance(stage, dict) and "name" in stage for stage in config["stages"]):
        return None
    return config if "class_path" in config["model"] else None


def is_sweep(folder: Path) -> bool:
    """Return True for the folder of an offline sweep."""
    try:
        record = yaml.safe_load((folder / SWEEP).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(record, dict) and {"specification", "seed", "recipe"} <= record.keys()


def record_of(folder: Path) -> RunRecord:
    """Read the record of a run folder.

    Raises:
        UserError: the folder is no run folder, or a file of it is damaged or of an earlier version.
    """
    config = config_of_run(folder)
    if config is None:
        raise UserError(f"{str(folder)!r} is not a run folder: it has no config.yaml or no checkpoints")
    only = config.get("only") or []
    stages = [stage for stage in config["stages"] if not only or stage["name"] in only]
    saved = manifest.newest(folder / "checkpoints")
    summary, row = read_summary(folder), last_row(folder / "metrics.csv")
    is_finished = bool(summary) or (saved is not None and bool(stages) and _is_end(saved, stages[-1]))
    state = "empty" if saved is None else "finished" if is_finished else "stopped"
    metrics = folder / "metrics.csv"
    return RunRecord(
        path=folder,
        family=str(config["model"]["class_path"]).rpartition(".")[2],
        stages=tuple(stage["name"] for stage in stages),
        state="running" if living_holder(folder) is not None else state,
        stage="" if saved is None else saved.stage,
        step=int(number_in(row, "step", metrics) or 0),
        seconds=summary.get("seconds") or number_in(row, "seconds", metrics),
        accuracy=summary["accuracy"]["overall"] if "accuracy" in summary else None,
        blind=summary["blind"]["overall"] if "blind" in summary else None,
        last_write=(metrics if metrics.exists() else folder / CONFIG).stat().st_mtime,
    )


def _is_end(saved: manifest.Saved, stage: Mapping[str, Any]) -> bool:
    """Return True if a checkpoint is the end of a stage, by the planned steps or because a callback ended it early."""
    if saved.stage != stage["name"]:
        return False
    if saved.step == stage.get("max_steps"):
        return True
    return stage["name"] in manifest.read(saved.path).content.get("ends", {})


def last_row(table: Path) -> dict[str, str]:
    """Return the last whole row of a CSV as texts; {} if there is none."""
    try:
        with table.open("rb") as file:
            header = file.readline().decode(errors="replace")
            file.seek(max(len(header), file.seek(0, os.SEEK_END) - TAIL))
            tail = file.read().decode(errors="replace")
    except FileNotFoundError:
        return {}
    lines = tail[: tail.rfind("\n") + 1].splitlines()
    if not lines:
        return {}
    names, cells = csv.reader([header, lines[-1]])
    return dict(zip(names, cells, strict=False))


def number_in(row: Mapping[str, str], column: str, table: Path) -> float | None:
    """Return a number of a table's row; None if the row lacks the column.

    Raises:
        UserError: the cell is no number.
    """
    try:
        return float(row[column]) if column in row else None
    except ValueError as error:
        raise UserError(f"{str(table)!r} is damaged: its last row has {row[column]!r} under {column!r}") from error


def users_of(folder: Path, others: Iterator[Path]) -> list[Path]:
    """Return the runs that still need a run folder: its checkpoints are the origin of their first or frozen weights.

    Args:
        folder: run folder.
        others: other run folders.
    Raises:
        UserError: the origin of another run's weights cannot be read.
    """
    inside = folder.resolve()
    users = []
    for other in others:
        if other.resolve() == inside or inside in other.resolve().parents:
            continue
        places = [Path(origin).resolve() for origin in origins_of(other)]
        if any(place == inside or inside in place.parents for place in places):
            users.append(other)
    return users


def origins_of(folder: Path) -> list[str]:
    """Return the places that a run loads its first or frozen weights from.

    Raises:
        UserError: the newest checkpoint or the record of the start cannot be read.
    """
    saved, record = manifest.newest(folder / "checkpoints"), folder / "init_from.json"
    if saved is not None:
        return [entry["origin"] for entry in manifest.read(saved.path).content["frozen"].values()]
    try:
        return [json.loads(record.read_bytes())["checkpoint"]] if record.exists() else []
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{str(record)!r} is damaged ({type(error).__name__})") from error


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum((Path(place) / name).lstat().st_size for place, _, files in os.walk(folder) for name in files)
