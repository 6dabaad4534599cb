"""The config.json of a published model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from lit_mm.errors import UserError, first_line

CONFIG = "config.json"
POINTER = b"version https://git-lfs"  # beginning of a file that stands for one which Git LFS has not fetched
WHOLE = ("model.safetensors", "pytorch_model.bin")  # names of transformers' files of weights
REFUSALS = (ValueError, TypeError, KeyError, StrictDataclassError)  # errors of transformers' configs


def read_config(place: str) -> dict[str, Any]:
    """Read a config.json.

    Args:
        place: a folder with a config.json, the file itself, or a published name, whose file is downloaded.
    Raises:
        UserError: there is no such file, it cannot be downloaded, or it holds no JSON object.
    """
    path = Path(os.path.expanduser(place))
    if path.is_dir():
        path = path / CONFIG
    if is_published_name(place):
        path = _download(place)
    if not path.is_file():
        raise UserError(f"the config of a published model: {str(path)!r} does not exist; give a folder that holds one")
    return read_object(path)


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object, with or without the byte order mark that programs of Windows write.

    Raises:
        UserError: the file is damaged, holds another value, or is a pointer of Git LFS.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        check_pointer(path)
        raise UserError(f"{str(path)!r} is damaged ({error}). Is the download complete?") from error
    if not isinstance(content, dict):
        raise UserError(f"{str(path)!r} should hold an object, got {type(content).__name__}. Is the download complete?")
    return content


def check_pointer(path: Path) -> None:
    """Refuse a file that Git LFS has not fetched.

    Raises:
        UserError: the file is such a pointer.
    """
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise UserError(
                f"{str(path)!r} is a pointer of Git LFS, not the file itself. Fetch it by git lfs pull, or download it"
            )


def is_published_name(place: str) -> bool:
    """Return True for OWNER/NAME or OWNER/NAME@REVISION that is no local path."""
    exists = Path(os.path.expanduser(place)).exists()
    return not exists and split_revision(place)[0].count("/") == 1 and not place.startswith((".", "/", "~"))


def split_revision(place: str) -> tuple[str, str | None]:
    """Split OWNER/NAME@REVISION into the name and the revision, a branch, tag or commit; None stands for the newest."""
    name, _, revision = place.partition("@")
    return name, revision or None


def config_folder(place: Path) -> Path:
    """Return the folder whose config.json describes weights: that of a file with a name of transformers.

    Args:
        place: a folder, or a file of weights. Files of other names are returned unchanged.
    """
    return place.parent if place.name in WHOLE and place.is_file() else place


def half_of(config: dict[str, Any], key: str) -> dict[str, Any]:
    """Return the config of one half of a multimodal model; a config without such a half is returned as it is.

    Args:
        config: config.json of a published model.
        key: "text_config" or "vision_config".
    Raises:
        UserError: transformers refuses the config.
    """
    from transformers import CONFIG_MAPPING  # imported late: the command line reads configs of other kinds, too

    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING or key not in CONFIG_MAPPING[kind].sub_configs_defaults:
        return config
    try:
        return CONFIG_MAPPING[kind](**without_type(config)).to_dict()[key]
    except REFUSALS as error:
        raise UserError(f"transformers refuses the config of this {kind}: {error}") from error


def without_type(config: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of a config that its class in transformers takes."""
    return {key: value for key, value in config.items() if key not in ("model_type", "dtype", "torch_dtype")}


def _download(name: str) -> Path:
    from huggingface_hub import hf_hub_download  # imported late: only downloads need it

    try:
        name_alone, revision = split_revision(name)
        return Path(hf_hub_download(name_alone, CONFIG, revision=revision))
    except (OSError, ValueError) as error:  # the hub's errors: no such name, no access, no network
        reason = first_line(error)
        raise UserError(
            f"the config of {name!r} cannot be downloaded ({reason}). Correct the name, or give a local folder"
        ) from error
