"""`runs` lists run folders, compares two configs, and deletes run folders with care. No torch is imported."""

from __future__ import annotations

import json
import os
import shutil
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lit_mm.commands.options import Arguments
from lit_mm.errors import UserError, first_line

if TYPE_CHECKING:
    from lit_mm.commands.run_folders import RunRecord

PROG = "python -m lit_mm runs"
ROOT = "runs"  # folder that `fit` makes run folders in
STATES = ("running", "finished", "stopped", "empty")
SORTS = ("time", "accuracy", "seconds", "steps")
EPILOG = """examples:
  python -m lit_mm runs list --family Llava --state finished --sort accuracy
  python -m lit_mm runs list runs/sweeps/llava_rates --format json
  python -m lit_mm runs diff runs/llava/2026-01-02_10-00-00 runs/latest
  python -m lit_mm runs delete runs/llava/2026-01-02_10-00-00"""


def runs(arguments: Sequence[str]) -> None:
    """List run folders, compare the configs of two, or delete some."""
    parser = Arguments(prog=PROG, description=runs.__doc__, epilog=EPILOG)
    actions = parser.add_subparsers(dest="action", required=True, metavar="list | diff | delete")
    listing = actions.add_parser("list", description=list_runs.__doc__, help="list run folders")
    listing.add_argument("folder", nargs="*", default=[ROOT], help=f"folders to search (default: {ROOT})")
    listing.add_argument("--family", metavar="NAME", help="list only runs of this family, such as Llava")
    listing.add_argument("--stage", metavar="NAME", help="list only runs with a stage of this name")
    listing.add_argument("--state", choices=STATES, help="list only runs in this state")
    listing.add_argument(
        "--min_accuracy",
        type=float,
        metavar="SHARE",
        help="list only finished runs with at least this accuracy, 0 to 1",
    )
    listing.add_argument("--max_hours", type=float, metavar="HOURS", help="list only runs that took at most this time")
    listing.add_argument(
        "--sort", choices=SORTS, default="time", help="order of the list (default: time, the newest last)"
    )
    listing.add_argument(
        "--format", choices=("table", "json"), default="table", help="format of the output (default: table)"
    )
    comparison = actions.add_parser("diff", description=diff.__doc__, help="compare two configs")
    comparison.add_argument("a", help="run folder or config file")
    comparison.add_argument("b", help="run folder or config file")
    comparison.add_argument(
        "--format", choices=("table", "json"), default="table", help="format of the output (default: table)"
    )
    deletion = actions.add_parser("delete", description=delete.__doc__, help="delete run folders")
    deletion.add_argument("folder", nargs="+", help="run folder, or the folder of an offline sweep with all its trials")
    deletion.add_argument("--yes", action="store_true", help="delete without asking")
    choices = parser.parse_args(arguments)
    {"list": list_runs, "diff": diff, "delete": delete}[choices.action](choices)


def list_runs(choices: Any) -> None:
    """List run folders with family, stages, state, accuracy and cost."""
    from lit_mm.commands.run_folders import record_of, run_folders

    records, problems = [], []
    for folder in (folder for root in choices.folder for folder in run_folders(Path(root))):
        try:
            records.append(record_of(folder))
        except (UserError, OSError) as error:  # OSError: another job deletes the run just now
            problems.append(f"lit_mm: {str(folder)!r} is not listed: {error}")
    records = [record for record in records if _matches(record, choices)]
    keys = {
        "time": lambda record: record.last_write,
        "accuracy": lambda record: -1.0 if record.accuracy is None else record.accuracy,
        "seconds": lambda record: record.seconds or 0.0,
        "steps": lambda record: record.step,
    }
    records.sort(key=keys[choices.sort])
    if choices.format == "json":
        print(json.dumps([asdict(record) | {"path": str(record.path)} for record in records]))
    else:
        print(_table(records) if records else "no run folder matches")
    print(*problems, sep="\n", end="\n" * bool(problems), file=sys.stderr)


def _matches(record: RunRecord, choices: Any) -> bool:
    return (
        (choices.family is None or record.family.lower() == choices.family.lower())
        and (choices.stage is None or choices.stage in record.stages)
        and (choices.state is None or record.state == choices.state)
        and (choices.min_accuracy is None or (record.accuracy or -1.0) >= choices.min_accuracy)
        and (choices.max_hours is None or (record.seconds or 0.0) <= 3600 * choices.max_hours)
    )


def _table(records: Sequence[RunRecord]) -> str:
    from lit_mm.commands.describe import aligned

    rows = [["run", "family", "stages", "state", "steps", "accuracy", "blind", "time", "last sign"]]
    for record in records:
        state = f"{record.state} in {record.stage}" if record.state == "stopped" else record.state
        shares = ["-" if share is None else f"{100 * share:.1f} %" for share in (record.accuracy, record.blind)]
        time = "-" if record.seconds is None else _duration(record.seconds)
        last = f"{datetime.fromtimestamp(record.last_write):%Y-%m-%d %H:%M}"
        stages = " + ".join(record.stages)
        rows.append([str(record.path), record.family, stages, state, f"{record.step:,}", *shares, time, last])
    return aligned(rows)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


# --- diff ------------------------------------------------------------------------------------------------------------
def diff(choices: Any) -> None:
    """Print the keys whose values differ between the resolved configs of two runs."""
    from lit_mm.run.folder import differences, value_at

    a, b = (_config(place) for place in (choices.a, choices.b))
    pairs = {key: (value_at(a, key), value_at(b, key)) for key in differences(a, b)}
    if choices.format == "json":
        print(json.dumps({key: {"a": left, "b": right} for key, (left, right) in pairs.items()}, default=str))
    elif pairs:
        print("\n".join(f"{key}: {_flow(left)} -> {_flow(right)}" for key, (left, right) in pairs.items()))
    else:
        print("the configs are equal")


def _config(place: str) -> Mapping[str, Any]:
    """Read the config of a run folder, or a config file, in the form of this version."""
    from lit_mm.checkpoints.before import translate_config
    from lit_mm.commands.run_folders import CONFIG, config_of_run

    path = Path(place)
    if path.is_dir():
        config = config_of_run(path)
        if config is None:
            raise UserError(f"{place!r} is not a run folder: it has no config.yaml or no checkpoints")
        return translate_config(dict(config))
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{place!r} cannot be read ({error.strerror}). Give a run folder or its {CONFIG}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{place!r} is no YAML: {first_line(error)}") from error
    if not isinstance(config, dict):
        raise UserError(f"{place!r} holds no config; expected keys such as model, stages and data")
    return translate_config(config)


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()


# --- delete ----------------------------------------------------------------------------------------------------------
def delete(choices: Any) -> None:
    """Delete run folders after asking. Folders that a job uses or that another run needs are never deleted."""
    from lit_mm.commands.run_folders import size_of

    folders = {Path(place): runs_in(Path(place)) for place in dict.fromkeys(choices.folder)}
    for folder in folders:
        check_deletion(folder, folders)
    count = sum(len(inner) for inner in folders.values())
    amount = f"{count} run" + "s" * (count != 1)
    total = sum(map(size_of, folders))
    for folder in folders:
        print(f"{folder}: {size_of(folder) / 1e6:,.1f} MB")
    if not choices.yes:
        if not sys.stdin.isatty():
            raise UserError("runs delete asks before it deletes; without a terminal add --yes")
        if input(f"delete {amount}, {total / 1e6:,.1f} MB? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing was deleted")
            return
    for folder, inner in folders.items():
        remove(folder, inner)
    print(f"deleted {amount}, {total / 1e6:,.1f} MB")


def runs_in(folder: Path) -> list[Path]:
    """Return the run folders of a folder to delete: the folder itself, or the trials of a sweep.

    Raises:
        UserError: the folder is neither, is a link, or is a trial of a sweep.
    """
    from lit_mm.commands.run_folders import config_of_run, is_sweep, run_folders

    if folder.is_symlink():
        raise UserError(f"{str(folder)!r} is a link to {os.readlink(folder)!r}. Name the run folder itself")
    if is_sweep(folder):
        return list(run_folders(folder))
    if config_of_run(folder) is None:
        raise UserError(
            f"{str(folder)!r} is not a run folder: it has no config.yaml or no checkpoints. Nothing was deleted"
        )
    sweep = folder.resolve().parents[1]
    if is_sweep(sweep):
        raise UserError(f"{str(folder)!r} is a trial of the sweep in {str(sweep)!r}. Delete the whole sweep instead")
    return [folder]


def check_deletion(folder: Path, others: Mapping[Path, Sequence[Path]]) -> None:
    """Refuse to delete a folder that a job uses or that another run needs.

    Args:
        folder: run folder or folder of a sweep.
        others: all folders to delete -> their run folders.
    Raises:
        UserError: a job or a run needs the folder.
    """
    from lit_mm.commands.run_folders import run_folders, users_of
    from lit_mm.run.lock import living_holder

    for run in others[folder]:
        if (holder := living_holder(run)) is not None:
            raise UserError(f"{str(run)!r} is in use by {holder}. End that run first. Nothing was deleted")
    roots = {Path(ROOT) if Path(ROOT).is_dir() else folder.parent, folder.parent}
    leaving = {run.resolve() for runs in others.values() for run in runs}
    neighbours = {run.resolve() for root in roots for run in run_folders(root)} - leaving
    for run in others[folder]:
        try:
            users = users_of(run, iter(sorted(neighbours)))
        except UserError as error:
            raise UserError(
                f"a run that may need {str(run)!r} cannot be read: {error}. Mend that run, or delete both in one "
                "command. Nothing was deleted"
            ) from error
        if users:
            raise UserError(
                f"{str(run)!r} has weights that {str(users[0])!r} still loads. Delete that run first. Nothing was "
                "deleted"
            )


def remove(folder: Path, inner: Sequence[Path]) -> None:
    """Delete a folder while no other job can lock its runs.

    The folder gets a hidden name first, so that a kill leaves no half run folder.

    Args:
        folder: run folder or folder of a sweep.
        inner: its run folders.
    Raises:
        UserError: a job has begun to use a run, or the system refuses.
    """
    from lit_mm.run.lock import FolderLock

    hidden = folder.with_name(f".deleted-{folder.name}-{uuid.uuid4().hex[:8]}")
    link = Path(ROOT) / "latest"
    is_latest = link.is_symlink() and link.resolve() in {run.resolve() for run in inner}
    try:
        with ExitStack() as locks:
            for run in inner:
                locks.enter_context(FolderLock(run))
            os.rename(folder, hidden)
            if is_latest:
                link.unlink()
        shutil.rmtree(hidden)
    except OSError as error:
        rest = f"; the rest of it is {str(hidden)!r}" if hidden.exists() else ""
        raise UserError(f"{str(folder)!r} cannot be deleted: {error}{rest}") from error
