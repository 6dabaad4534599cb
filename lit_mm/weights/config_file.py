"""The config.json of a published model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lit_mm.errors import UserError

CONFIG = "config.json"


def read_config(place: str) -> dict[str, Any]:
    """Read a config.json.

    Args:
        place: a folder with a config.json, the file itself, or a published name, whose file is downloaded.
    Raises:
        UserError: there is no such file, it cannot be downloaded, or it holds no JSON object.
    """
    path = Path(place)
    if path.is_dir():
        path = path / CONFIG
    if not path.exists() and place.count("/") == 1 and not place.startswith((".", "/", "~")):
        path = _download(place)
    if not path.is_file():
        raise UserError(f"the config of a published model: {str(path)!r} does not exist; give a folder that holds one")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{str(path)!r} is no JSON ({error}). Is the download complete?") from error
    if not isinstance(config, dict):
        raise UserError(f"{str(path)!r} should hold an object with the numbers of a model, got {type(config).__name__}")
    return config


def _download(name: str) -> Path:
    from huggingface_hub import hf_hub_download  # imported late: only downloads need it

    try:
        return Path(hf_hub_download(name, CONFIG))
    except OSError as error:  # the hub's errors: no such name, no access, no network
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise UserError(
            f"the config of {name!r} cannot be downloaded ({reason}). Correct the name, or give a local folder"
        ) from error
