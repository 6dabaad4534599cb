"""The checkpoint of another run that a run starts from (`init_from`), recorded in the run folder."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from lit_mm.checkpoints import manifest, reading
from lit_mm.errors import UserError
from lit_mm.run.folder import ORIGIN, RunFolder

CURE = "Leave --init_from out to go on with this run, or choose another folder with --run_dir"


def recorded_origin(run_dir: str | None) -> dict[str, str] | None:
    """What a run folder records of the checkpoint that its run started from; None where it records nothing.

    Returns:
        `init_from`, the absolute path that was typed; `checkpoint`, the one that it stood for; its `digest`.
    """
    file = Path(run_dir) / ORIGIN if run_dir else None
    if file is None or not file.exists():
        return None
    try:
        record = json.loads(file.read_bytes())
        return {key: str(record[key]) for key in ("init_from", "checkpoint", "digest")}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{str(file)!r} is damaged ({type(error).__name__}). Remove it, and name --init_from"
        ) from error


def check_start(selected: Sequence[str], recipe: Sequence[str], run_dir: str | None, init_from: str | None) -> None:
    """Refuse a start that has nothing to start from, before a run folder is made.

    Args:
        selected: names of the stages that shall run.
        recipe: names of all stages.
        run_dir: the run folder; None: a new one.
        init_from: run folder or checkpoint to start from.
    Raises:
        UserError: the checkpoint to start from cannot be read, or the stages before the first one were never trained.
    """
    folder = Path(run_dir) if run_dir else None
    if folder is not None and manifest.newest(folder / "checkpoints"):
        return
    if init_from:
        reading.read(manifest.find(init_from))
        return
    before = recipe[: recipe.index(selected[0])] if selected else []
    if before:
        raise UserError(
            f"--stages begins with {selected[0]!r}; {', '.join(map(repr, before))} before it has not been trained "
            "here. Name it as well, or give a trained model with --init_from RUN"
        )


def starting_point(folder: RunFolder, init_from: str | None) -> str:
    """The checkpoint whose weights a run starts from, recorded in the run folder. Called on one rank.

    Args:
        init_from: run folder or checkpoint that the command line names.
    Returns:
        Path of the checkpoint; "" for a run that goes on from a checkpoint of its own, or that starts from none.
    Raises:
        UserError: the run was begun from another checkpoint, or the recorded one has changed or cannot be read.
    """
    file, record = folder.path / ORIGIN, recorded_origin(str(folder.path))
    if manifest.newest(folder.checkpoints):
        if init_from and not _is_same(init_from, record):
            origin = record["checkpoint"] if record else "published or random weights"
            raise UserError(f"the run in {str(folder.path)!r} started from {origin}, not from {init_from!r}. {CURE}")
        return ""
    if init_from:
        path = manifest.find(init_from)
        _check_whole(path)
        record = {"init_from": os.path.abspath(init_from), "checkpoint": os.path.abspath(path), "digest": _digest(path)}
        part = file.with_name(file.name + ".part")
        part.write_text(json.dumps(record, indent=1) + "\n")
        os.replace(part, file)
        return str(path)
    if record is None:
        return ""
    path = Path(record["checkpoint"])
    _check_whole(path)
    if _digest(path) != record["digest"]:
        raise UserError(
            f"the run in {str(folder.path)!r} started from {str(path)!r}, which has changed since. Give the checkpoint "
            "to start from with --init_from"
        )
    return str(path)


def _check_whole(path: Path) -> None:
    try:
        reading.read(path).verify()
    except manifest.Damaged as error:
        raise UserError(f"--init_from: {error}{reading.alternative(path)}") from error


def _is_same(init_from: str, record: dict[str, str] | None) -> bool:
    """Whether the command line names the recorded checkpoint; it may be gone, as it is not needed any more."""
    if record is None:
        return False
    if os.path.abspath(init_from) in (record["init_from"], record["checkpoint"]):
        return True
    return _digest(manifest.find(init_from)) == record["digest"]


def _digest(checkpoint: Path) -> str:
    """Digest of a checkpoint's manifest, which has the digests of all its files; "" for a checkpoint that is gone."""
    file = checkpoint / "manifest.json"
    return manifest.digest_file(file) if file.is_file() else ""
