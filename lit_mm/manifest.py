"""What a checkpoint's manifest says, read without torch: what is in a checkpoint, and whether it is whole.

The format is described in `lit_mm.checkpoints`, which writes it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_mm.errors import UserError

FORMAT = 1
NAME = re.compile(r"(\d+)-.+-step=(\d+)\.ckpt")
CHUNK = 1 << 20  # bytes read at once


@dataclass(frozen=True)
class Manifest:
    """A checkpoint's folder and its manifest.json, parsed."""

    path: Path
    content: dict[str, Any]

    @property
    def bytes(self) -> int:
        return sum(entry["bytes"] for entry in self.content["files"].values())

    def files(self, *kinds: str) -> dict[str, dict[str, Any]]:
        """The files whose names start with one of `kinds`: weights, optimizer, state, config."""
        return {name: entry for name, entry in self.content["files"].items() if name.startswith(kinds)}


def find(place: str | Path) -> Path:
    """The checkpoint's folder that a run folder (its newest), a folder of checkpoints or its own path stands for.

    Raises:
        UserError: there is none.
    """
    place = Path(place)
    if not place.exists():
        raise UserError(
            f"there is no checkpoint {str(place)!r}. Give a run folder, or a folder inside its checkpoints/"
        )
    if place.is_file():
        raise UserError(f"{str(place)!r} is a file; a checkpoint is a folder NN-stage-step=N.ckpt in a run folder")
    if (place / "manifest.json").exists() or place.suffix in (".ckpt", ".part"):
        return place
    for folder in (place / "checkpoints", place):
        found = [(int(m[1]), int(m[2]), path) for path in folder.glob("*.ckpt") if (m := NAME.fullmatch(path.name))]
        if found:
            return max(found)[2]
    raise UserError(f"{str(place)!r} holds no checkpoint: is it a run folder, and did its run save one?")


def read(path: Path) -> Manifest:
    """The manifest of a checkpoint. What it says of its files is not checked here; see `damage`.

    Raises:
        UserError: there is no manifest, it is spoilt, or of another format.
    """
    if path.suffix == ".part":
        raise UserError(f"{str(path)!r} was not published: its run was stopped while it wrote. Nothing ever reads it")
    try:
        content = json.loads((path / "manifest.json").read_text())
        version = content["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{str(path)!r} is damaged: its manifest.json is missing or spoilt ({type(error).__name__}). Delete the "
            "folder, and the run resumes from the checkpoint before"
        ) from error
    if version != FORMAT:
        raise UserError(f"{str(path)!r} has format {version}, this version of lit_mm reads format {FORMAT}")
    return Manifest(path, content)


def damage(manifest: Manifest, *, verify: bool = False, kinds: tuple[str, ...] = ("",)) -> list[str]:
    """What is wrong with a checkpoint's files, a line each; nothing where it is whole.

    Args:
        verify: also read every file and compare its digest, about a second per gigabyte.
        kinds: look at these files only; see `Manifest.files`.
    """
    found = []
    for name, entry in manifest.files(*kinds).items():
        file = manifest.path / name
        size = file.stat().st_size if file.is_file() else None
        if size is None:
            found.append(f"{name} is missing")
        elif size != entry["bytes"]:
            found.append(f"{name} has {size} bytes, {entry['bytes']} were written")
        elif verify and digest_file(file) != entry["blake2b"]:
            found.append(f"{name} does not have the bytes that were written")
    for kind in ("weights", "moments"):
        for name, entry in manifest.content[kind].items():
            if (held := covered(entry)) != (wanted := math.prod(entry["shape"])):
                found.append(f"{kind} of {name!r}: the pieces hold {held} of {wanted} elements")
    return found


def covered(entry: Mapping[str, Any]) -> int:
    """Elements of a tensor that its pieces hold from the first on, without a gap."""
    end = 0
    for _, _, start, count in sorted(entry["pieces"], key=lambda piece: piece[2]):
        if start > end:
            break
        end = max(end, start + count)
    return end


def digest_file(path: Path) -> str:
    """Digest of a file's bytes, as the manifest has it."""
    hashed = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            hashed.update(chunk)
    return hashed.hexdigest()


@dataclass(frozen=True)
class PartOf:
    """One part of the model in a checkpoint.

    Attributes:
        tensors: its tensors, stored or not.
        parameters: elements of those that are stored. What is kept by digest has no sizes here.
        dtypes: of the stored ones, with their tensors.
        origin: where the part is loaded from; "" where it is stored.
        moments: tensors that the optimizer has moments of.
    """

    tensors: int
    parameters: int
    dtypes: dict[str, int]
    origin: str
    moments: int


def parts(manifest: Manifest) -> dict[str, PartOf]:
    """The parts of a checkpoint, by name, in the order of the model."""
    content = manifest.content
    learnt = {key.partition("/")[2] for key in content["moments"]}
    described = {}
    for part, names in content["parts"].items():
        frozen = content["frozen"].get(part)
        entries = [content["weights"][name] for name in names if name in content["weights"]]
        described[part] = PartOf(
            tensors=len(names),
            parameters=sum(math.prod(entry["shape"]) for entry in entries),
            dtypes=dict(Counter(entry["dtype"] for entry in entries)),
            origin=frozen["origin"] if frozen else "",
            moments=len(learnt.intersection(names)),
        )
    return described
