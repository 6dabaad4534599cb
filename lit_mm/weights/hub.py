"""The download of the files of a published name that are read."""

from __future__ import annotations

import glob
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from lit_mm.errors import UserError, first_line
from lit_mm.weights.config_file import split_revision
from lit_mm.weights.convert import INDEXES, find_weights, weight_map
from lit_mm.weights.files import LORA, STATES, check_quantised, read_json

TEXTS = ("*.json", "*.model", "*.tiktoken", "*.jinja", "*.txt")  # configs, indexes and tokenizers
WEIGHTS = ("*.safetensors", "*.bin", "*.pth")
SECOND_COPIES = ["original/*"]  # of the weights, in the authors' names


def download_weights(place: str) -> Path:
    """Download the files of a published name that are read, and return their folder.

    A repository may hold its weights twice, as safetensors and as torch files. Of these, `find_weights` chooses.
    Folders inside are read only if the repository has no weights of its own.

    Args:
        place: published name, OWNER/NAME or OWNER/NAME@REVISION.
    Raises:
        UserError: the name cannot be downloaded, or its config says that it is quantised; no weights are then fetched.
    """
    from huggingface_hub import snapshot_download  # imported late: only downloads need it
    from huggingface_hub.errors import DryRunError

    name, revision = split_revision(place)
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(TEXTS)))
        check_quantised(place, read_json(folder, "config.json"))
        try:
            listed = snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(WEIGHTS),
                ignore_patterns=SECOND_COPIES,
                dry_run=True,
            )
            files = {entry.filename for entry in listed}
        except DryRunError:  # without a network, the cache tells
            files = {path.relative_to(folder).as_posix() for ending in WEIGHTS for path in folder.rglob(ending)}
        indexes = {path.relative_to(folder).as_posix() for name in INDEXES for path in folder.rglob(name)}
        patterns = [glob.escape(file) for file in files_to_read(folder, files | indexes)]
        return Path(snapshot_download(name, revision=revision, allow_patterns=[*TEXTS, *patterns]))
    except UserError:
        raise
    except (OSError, ValueError) as error:  # the hub's errors: no such name, no access, no network
        raise UserError(
            f"the weights {place!r} cannot be downloaded ({first_line(error)}). "
            "Correct the name, or give a local file or folder"
        ) from error


def files_to_read(folder: Path, names: Collection[str]) -> list[str]:
    """Choose the files of weights of a repository that are read.

    Args:
        folder: folder that holds the indexes of the repository.
        names: paths of the indexes and of all files of weights.
    """
    inside: dict[str, set[str]] = {}
    for name in names:
        path = PurePosixPath(name)
        inside.setdefault(str(path.parent), set()).add(path.name)
    top = inside.pop(".", set())
    if weights := _weights_of(folder, top):
        return weights
    return [f"{parent}/{file}" for parent in sorted(inside) for file in _weights_of(folder / parent, inside[parent])]


def _weights_of(folder: Path, names: Collection[str]) -> list[str]:
    """Choose the files of weights of one folder: those that `tensor_files` reads, or all if they have other names."""
    weights = find_weights(names, lambda index: weight_map(folder / index).values())
    if weights and (weights[0] in INDEXES or set(LORA).isdisjoint(names)):
        return weights[1]
    return sorted(name for name in names if not name.endswith(".json") and not STATES.fullmatch(name))
