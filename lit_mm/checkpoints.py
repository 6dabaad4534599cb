"""Checkpoints: written aside, synced, published last; an unpublished one is never resumed."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lit_mm.errors import UserError

NAME = re.compile(r"(?P<number>\d+)-(?P<stage>.+)-step=(?P<step>\d+)\.ckpt")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes `<name>.part`, syncs and renames it: a file under its final name is whole, whatever killed the process."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        final = Path(path)
        final.parent.mkdir(parents=True, exist_ok=True)
        part = final.with_name(final.name + ".part")
        with part.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, final)
        folder = os.open(final.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


@dataclass(frozen=True, order=True)
class Saved:
    """A published checkpoint of a run."""

    number: int  # of the stage, from 1
    step: int  # optimizer steps of the stage
    stage: str
    path: Path


def checkpoint_name(number: int, stage: str, step: int) -> str:
    return f"{number:02d}-{stage}-step={step:06d}.ckpt"


def published(folder: Path) -> list[Saved]:
    """The checkpoints of a run's checkpoint folder, the furthest last."""
    found = [(NAME.fullmatch(path.name), path) for path in folder.glob("*.ckpt")]
    return sorted(Saved(int(m["number"]), int(m["step"]), m["stage"], path) for m, path in found if m)


def newest(folder: Path) -> Saved | None:
    """The furthest published checkpoint of a run's checkpoint folder."""
    return (published(folder) or [None])[-1]


def read(path: Path) -> dict[str, Any]:
    """A checkpoint of lit_mm, on the CPU.

    Raises:
        UserError: there is no such file, it cannot be read, or something else wrote it.
    """
    if not path.is_file():
        raise UserError(
            f"there is no checkpoint {str(path)!r}. Give a run folder, or a .ckpt file inside its checkpoints/"
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{str(path)!r} cannot be read as a checkpoint ({type(error).__name__}). It is damaged or of another kind: "
            "delete it, and the run resumes from the one before"
        ) from error
    if not isinstance(checkpoint, dict) or "lit_mm" not in checkpoint:
        raise UserError(
            f"{str(path)!r} is not a checkpoint of lit_mm; published weights are named by `weights:` of a part"
        )
    return checkpoint


def find(place: str | Path) -> Path:
    """The checkpoint file that a run folder, a checkpoint folder or a file name stands for."""
    place = Path(place)
    if place.is_dir():
        saved = newest(place / "checkpoints") or newest(place)
        if saved is None:
            raise UserError(f"{str(place)!r} holds no checkpoint: is it a run folder, and did its run save one?")
        return saved.path
    return place


def load_weights(module: torch.nn.Module, checkpoint: dict[str, Any], family: str, path: Path) -> None:
    """Put a checkpoint's weights into a model of the same family and shape."""
    made_by = checkpoint["lit_mm"]["family"]
    if made_by != family:
        raise UserError(
            f"{str(path)!r} is a checkpoint of {made_by}, the model is {family}. "
            f"Use a config of {made_by}, or another checkpoint"
        )
    ours = module.state_dict()
    theirs = checkpoint["state_dict"]
    odd = sorted(
        set(ours) ^ set(theirs) | {name for name in set(ours) & set(theirs) if ours[name].shape != theirs[name].shape}
    )
    if odd:
        raise UserError(
            f"{str(path)!r} does not fit this model: {len(odd)} of {len(ours)} tensors differ in name or shape, the "
            f"first is {odd[0]!r} ({_shape(theirs, odd[0])} in the checkpoint, {_shape(ours, odd[0])} in the model). "
            "Use the config.yaml of the run that made it"
        )
    module.load_state_dict(theirs)


def _shape(state: dict[str, torch.Tensor], name: str) -> str:
    return str(tuple(state[name].shape)) if name in state else "absent"
