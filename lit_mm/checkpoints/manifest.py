"""Manifests: finding, reading and checking the checkpoints of a run, without torch.

The format is described in `lit_mm.checkpoints`.
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

from lit_mm.errors import UserError, suggestion

FORMAT = 2
FORMATS = (1, 2)  # formats that can be read; format 1 has no digest of the manifest itself
SEAL = re.compile(rb',\n "blake2b": "([0-9a-f]{32})"\n}\n\Z')
REQUIRED = {"config.yaml", "state.pt"}  # files of every checkpoint
NAME = re.compile(r"(?P<number>\d+)-(?P<stage>.+)-step=(?P<step>\d+)\.ckpt")
CHUNK = 1 << 20  # bytes read at once


class Damaged(UserError):
    """Reports a checkpoint whose bytes are not those that were written."""


@dataclass(frozen=True, order=True)
class Saved:
    """A published checkpoint of a run; later checkpoints compare as greater."""

    number: int  # number of the stage, from 1
    step: int  # optimizer steps of the stage
    stage: str
    path: Path


def checkpoint_name(number: int, stage: str, step: int) -> str:
    """Return the name of a checkpoint's folder.

    Args:
        number: number of the stage, from 1.
        stage: name of the stage.
        step: optimizer steps of the stage.
    """
    return f"{number:02d}-{stage}-step={step:06d}.ckpt"


def published(folder: Path) -> list[Saved]:
    """List the checkpoints in a run's checkpoint folder, the latest last.

    Raises:
        UserError: a checkpoint is a single file, as earlier versions wrote them.
    """
    matches = [(NAME.fullmatch(path.name), path) for path in folder.glob("*.ckpt")]
    if old := [path for match, path in matches if match and path.is_file()]:
        raise UserError(
            f"{str(old[0])!r} was written by an earlier version of lit_mm, with checkpoints as single files. "
            "Finish the run with that version, or choose another run folder"
        )
    return sorted(saved_as(path) for match, path in matches if match)


def saved_as(path: Path) -> Saved:
    """Parse the name of a checkpoint."""
    match = NAME.fullmatch(path.name)
    return Saved(int(match["number"]), int(match["step"]), match["stage"], path)


def newest(folder: Path) -> Saved | None:
    """Return the latest published checkpoint in a run's checkpoint folder; None if there is none."""
    return (published(folder) or [None])[-1]


def find(place: str | Path, stage: str | None = None) -> Path:
    """Find a checkpoint: the newest in a run folder or in its checkpoint folder, or `place` itself.

    Args:
        place: run folder, checkpoint folder, or folder of one checkpoint.
        stage: name of a stage, to find its newest checkpoint; None means any stage.
    Raises:
        UserError: the folder holds no checkpoint, or none of that stage.
    """
    place = Path(place)
    if place.is_dir() and not (place / "manifest.json").exists() and place.suffix not in (".ckpt", ".part"):
        saved = published(place / "checkpoints") or published(place)
        if not saved:
            runs = sorted({path.parent.parent for path in place.glob("*/checkpoints/*.ckpt")})
            cure = f"It holds run folders: name one, such as {str(runs[-1])!r}" if runs else ""
            raise UserError(
                f"{str(place)!r} holds no checkpoint. {cure or 'Is it a run folder, and has its run saved one yet?'}"
            )
        of_stage = [checkpoint for checkpoint in saved if stage in (None, checkpoint.stage)]
        if not of_stage:
            names = list(dict.fromkeys(checkpoint.stage for checkpoint in saved))
            raise UserError(
                f"{str(place)!r} has no checkpoint of stage {stage!r}, only of {names}. A run keeps the end of a "
                "stage if other stages start from it or if it is a branch; `--keep_checkpoints` keeps more"
            )
        return of_stage[-1].path
    if stage is not None and (match := NAME.fullmatch(place.name)) and match["stage"] != stage:
        raise UserError(f"{str(place)!r} is a checkpoint of stage {match['stage']!r}, not of {stage!r}")
    return place


@dataclass(frozen=True)
class Manifest:
    """A checkpoint's folder and its manifest.json, parsed.

    Attributes:
        path: folder of the checkpoint.
        content: parsed manifest.json.
        sealed: True if the manifest holds its own digest, which then was verified.
    """

    path: Path
    content: dict[str, Any]
    sealed: bool = True

    @property
    def bytes(self) -> int:
        return sum(entry["bytes"] for entry in self.content["files"].values())

    def files(self, *kinds: str) -> dict[str, dict[str, Any]]:
        """Return name -> entry of files whose names start with one of `kinds`: weights, optimizer, state, config."""
        return {name: entry for name, entry in self.content["files"].items() if name.startswith(kinds)}

    def problem_of(self, name: str) -> str:
        """Describe a missing file or a wrong length; return "" if the file has its length. Digests are not compared."""
        file, expected = self.path / name, self.content["files"][name]["bytes"]
        if not file.is_file():
            return "is missing"
        size = file.stat().st_size
        return f"has {size} bytes, {expected} were written" if size != expected else ""


def read(path: Path) -> Manifest:
    """Read the manifest of a checkpoint and verify its digest; `damage` checks the other files.

    Raises:
        UserError: there is no such checkpoint, or it has an unknown format.
        Damaged: the manifest is missing, unreadable or changed.
    """
    if path.suffix == ".part":
        raise UserError(
            f"{str(path)!r} is incomplete: its run was stopped during the save. Choose another checkpoint of the run"
        )
    if path.is_file():
        raise UserError(
            f"{str(path)!r} is a file, but a checkpoint is a folder NN-stage-step=N.ckpt in checkpoints/ of a "
            "run folder. For published weights, use `weights:` of a part"
        )
    if not path.is_dir():
        siblings = [entry.name for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []
        guess = suggestion(path.name, siblings) or "Give a run folder, or a folder inside its checkpoints/"
        raise UserError(f"there is no checkpoint {str(path)!r}. {guess}")
    try:
        text = (path / "manifest.json").read_bytes()
        content = json.loads(text)
        version, *_ = [content[key] for key in ("format", "files", "weights", "moments", "steps", "frozen")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(
            f"{str(path)!r} cannot be read as a checkpoint: its manifest.json is missing or spoilt "
            f"({type(error).__name__})"
        ) from error
    mark = SEAL.search(text)
    if mark is not None and digest_bytes(text[: mark.start()]) != mark[1].decode():
        raise Damaged(f"{str(path / 'manifest.json')!r} does not have the bytes that were written")
    if version not in FORMATS:
        raise UserError(f"{str(path)!r} has format {version}, this version of lit_mm reads the formats 1 and 2")
    if mark is None and version != 1:
        raise Damaged(
            f"{str(path / 'manifest.json')!r} does not have the bytes that were written: its digest is missing"
        )
    opened = Manifest(path, content, sealed=mark is not None)
    if missing := omissions(content):
        raise Damaged(f"{str(path / 'manifest.json')!r} does not list {', '.join(missing[:4])}, which belong to it")
    return opened


def sealed(content: Mapping[str, Any]) -> str:
    """Write the text of a manifest.json, whose last entry is the digest of all bytes before it."""
    text = json.dumps({key: value for key, value in content.items() if key != "blake2b"}, indent=1).removesuffix("\n}")
    return f'{text},\n "blake2b": "{digest_bytes(text.encode())}"\n}}\n'


def omissions(content: Mapping[str, Any]) -> list[str]:
    """Return the files that a manifest refers to but does not list."""
    pieces = [piece for kind in ("weights", "moments") for entry in content[kind].values() for piece in entry["pieces"]]
    return sorted(({file for file, *_ in pieces} | REQUIRED) - content["files"].keys())


def damage(manifest: Manifest, *, verify: bool = False, kinds: tuple[str, ...] = ("",)) -> list[str]:
    """Describe the problems of a checkpoint's files, one line each; an intact checkpoint has none.

    Args:
        manifest: checkpoint to check.
        verify: True also reads every file and compares its digest, in about a second per gigabyte.
        kinds: beginnings of the names of the files to check; see `Manifest.files`.
    """
    problems = []
    for name, entry in manifest.files(*kinds).items():
        if problem := manifest.problem_of(name):
            problems.append(f"{name} {problem}")
        elif verify and digest_file(manifest.path / name) != entry["blake2b"]:
            problems.append(f"{name} does not have the bytes that were written")
    for kind in ("weights", "moments"):
        for name, entry in manifest.content[kind].items():
            if (elements := covered(entry)) != (expected := math.prod(entry["shape"])):
                problems.append(f"{kind} of {name!r}: the pieces hold {elements} of {expected} elements")
    return problems


def covered(entry: Mapping[str, Any]) -> int:
    """Count the elements of a tensor that its pieces hold from the first element to the first gap."""
    end = 0
    for _, _, start, count in sorted(entry["pieces"], key=lambda piece: piece[2]):
        if start > end:
            break
        end = max(end, start + count)
    return end


def digest_bytes(data: bytes) -> str:
    """Compute the digest of bytes, as in the manifest."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def digest_file(path: Path) -> str:
    """Compute the digest of a file's bytes, as in the manifest."""
    hashed = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            hashed.update(chunk)
    return hashed.hexdigest()


@dataclass(frozen=True)
class PartOf:
    """One part of the model in a checkpoint.

    Attributes:
        tensors: number of tensors, stored or not.
        parameters: number of elements of the stored tensors; a checkpoint has no sizes of tensors that it does not
            store.
        dtypes: dtype -> number of stored tensors.
        origin: reference that the part is loaded from; "" if the checkpoint stores it.
        moments: number of tensors with moments of the optimizer.
    """

    tensors: int
    parameters: int
    dtypes: dict[str, int]
    origin: str
    moments: int


def parts(manifest: Manifest) -> dict[str, PartOf]:
    """Return name -> part of a checkpoint, in the order of the model."""
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
