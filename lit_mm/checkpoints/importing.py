"""Writing a checkpoint tensor by tensor from weights of another source."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lit_mm.checkpoints.manifest import FORMAT, checkpoint_name, digest_file, sealed
from lit_mm.errors import UserError
from lit_mm.weights.stream import Stored, write

STAGE = "import"  # name of the stage in the checkpoint's folder and manifest
LARGEST_FILE = 2 << 30  # bytes of tensors in one file


def write_checkpoint(
    folder: Path,
    config: str,
    family: str,
    parts: Mapping[str, Sequence[str]],
    tensors: Mapping[str, Stored],
    elements: Callable[[str], Iterable[bytes | memoryview]],
) -> Path:
    """Write a checkpoint before any training, with one tensor in memory at a time, and return its path.

    Args:
        folder: folder of the checkpoints of a run.
        config: resolved config, YAML.
        family: public import path of the model's class.
        parts: part -> names of its tensors.
        tensors: dtype and shape of every tensor by name in `state_dict`.
        elements: function from a name to the bytes of the tensor; it is called once per tensor.
    Raises:
        UserError: the checkpoint cannot be written.
    """
    final = folder / checkpoint_name(1, STAGE, 0)
    part = final.with_name(final.name + ".part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        torch.save({}, part / "state.pt")
        (part / "config.yaml").write_text(config)
        weights: dict[str, Any] = {}
        for number, names in enumerate(_shares(tensors)):
            file = f"weights-00000-{number:02d}.safetensors"
            write(part / file, {name: tensors[name] for name in names}, elements, {"format": "pt"})
            for name in names:
                stored = tensors[name]
                pieces = [[file, name, 0, stored.elements]]
                weights[name] = {"shape": list(stored.shape), "dtype": stored.dtype, "pieces": pieces}
        files = {
            path.name: {"bytes": path.stat().st_size, "blake2b": digest_file(path)} for path in sorted(part.iterdir())
        }
        manifest = {
            "format": FORMAT,
            "family": family,
            "stage": STAGE,
            "stage_number": 1,
            "stage_step": 0,
            "step": 0,
            "ends": {},
            "strategy": "import",
            "data": {},
            "parts": {name: list(names) for name, names in parts.items()},
            "frozen": {},
            "ranks": 1,
            "folder": os.getcwd(),
            "files": files,
            "weights": {name: weights[name] for name in tensors},
            "moments": {},
            "steps": {},
        }
        (part / "manifest.json").write_text(sealed(manifest))
        os.rename(part, final)
    except OSError as error:
        raise UserError(
            f"{str(final)!r} cannot be written ({error.strerror}). Make room, or choose another --to"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return final


def _shares(tensors: Mapping[str, Stored]) -> list[list[str]]:
    """Distribute tensors over files of at most `LARGEST_FILE` bytes, in order."""
    shares: list[list[str]] = [[]]
    size = 0
    for name, stored in tensors.items():
        if shares[-1] and size + stored.bytes > LARGEST_FILE:
            shares.append([])
            size = 0
        shares[-1].append(name)
        size += stored.bytes
    return shares
