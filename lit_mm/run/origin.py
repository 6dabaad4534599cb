"""The record of the checkpoint of another run that a run starts from (`init_from`)."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from lit_mm.checkpoints import manifest, reading
from lit_mm.errors import UserError
from lit_mm.run.files import write_whole
from lit_mm.run.folder import ORIGIN, RunFolder

CURE = "Leave --init_from out to go on with this run, or choose another folder with --run_dir"


def recorded_origin(run_dir: str | None) -> dict[str, str] | None:
    """Read the record of the checkpoint that a run started from.

    Args:
        run_dir: run folder; None means no folder.
    Returns:
        `init_from`, the absolute path from the command line; `checkpoint`, the path of the checkpoint that it stood
        for; `digest`, the digest of that checkpoint. None without a record.
    Raises:
        UserError: the record is damaged.
    """
    file = Path(run_dir) / ORIGIN if run_dir else None
    if file is None or not file.exists():
        return None
    try:
        record = json.loads(file.read_bytes())
        return {key: str(record[key]) for key in ("init_from", "checkpoint", "digest")}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{str(file)!r} is damaged ({type(error).__name__}). Remove it, and add --init_from") from error


def check_start(selected: Sequence[str], recipe: Sequence[str], run_dir: str | None, init_from: str | None) -> None:
    """Check, before a run folder is created, that the first selected stage has weights to start from.

    Args:
        selected: names of the stages to run.
        recipe: names of all stages.
        run_dir: run folder; None means a new folder.
        init_from: run folder or checkpoint to start from; None if none is given.
    Raises:
        UserError: the checkpoint cannot be read, or stages before the first selected stage were never trained.
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
            f"--stages begins with {selected[0]!r}, but {', '.join(map(repr, before))} before it has not been "
            "trained here. Add it to --stages, or give a trained model with --init_from RUN"
        )


def starting_point(folder: RunFolder, init_from: str | None) -> str:
    """Find the checkpoint whose weights a run starts from, and record it in the run folder. Call it on one rank.

    Args:
        folder: run folder.
        init_from: run folder or checkpoint on the command line; None if none is given.
    Returns:
        Path of the checkpoint; "" for a run that resumes from its own checkpoint or starts from no checkpoint.
    Raises:
        UserError: the run began from another checkpoint, or the recorded checkpoint has changed or cannot be read.
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
        record = {
            "init_from": os.path.abspath(init_from),
            "checkpoint": os.path.realpath(path),
            "digest": _digest(path),
        }
        write_whole(file, json.dumps(record, indent=1) + "\n")
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
    """Return True if the command line names the recorded checkpoint, which need not exist any more."""
    if record is None:
        return False
    if os.path.abspath(init_from) in (record["init_from"], record["checkpoint"]):
        return True
    return _digest(manifest.find(init_from)) == record["digest"]


def _digest(checkpoint: Path) -> str:
    """Return the digest of a checkpoint's manifest, which holds the digests of all files; "" if it does not exist."""
    file = checkpoint / "manifest.json"
    return manifest.digest_file(file) if file.is_file() else ""
