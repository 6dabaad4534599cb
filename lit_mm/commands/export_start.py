"""The start of a run that is exported: the run that `import` made, and the tokenizers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lit_mm.checkpoints import manifest
from lit_mm.commands.import_ import FOLDERS
from lit_mm.errors import UserError

START = "import"  # name in --with of the run that `import` made
TOKENIZERS = ("tokenizer", "reading")  # of the language model, and of a second text


def imported_run(run: Path) -> tuple[Path | None, Path | None]:
    """Follow the starts of a run back to the run that `import` made.

    Returns:
        That run, None if there is none; and the first run on the way that is not there any more, None if all are.
    """
    place = run
    while not (place / "published.json").is_file():
        start = place / "init_from.json"
        if not start.is_file():
            return None, None
        place = Path(json.loads(start.read_text())["checkpoint"]).parents[1]
        if not place.is_dir():
            return None, place
    return place, None


def start_of(run: Path, place: str | None) -> tuple[Path | None, Path | None]:
    """Return the run that `import` made and a run that is missing, see `imported_run`.

    Args:
        run: run folder.
        place: place of `--with import=`; None for the recorded one.
    Raises:
        UserError: the place is no such run.
    """
    if place is None:
        return imported_run(run)
    source, _ = imported_run(Path(place))
    if source is None:
        raise UserError(
            f"--with {START}={place}: this folder has no published.json, nor has any run that it started "
            "from. Name the run that `import` wrote"
        )
    check_digest(run, source)
    return source, None


def check_digest(run: Path, source: Path) -> None:
    """Refuse an import in place of a start that is missing, if the record of the start tells that it is another one.

    Raises:
        UserError: the manifests differ.
    """
    start, record = {}, run / "init_from.json"
    while record.is_file():
        start = json.loads(record.read_text())
        record = Path(start["checkpoint"]).parents[1] / "init_from.json"
    checkpoint = manifest.find(source)
    is_import = start and Path(start["checkpoint"]).name == checkpoint.name
    if is_import and start.get("digest", "") not in ("", manifest.digest_file(checkpoint / "manifest.json")):
        raise UserError(
            f"--with {START}={source}: the run did not start from this import. It started from "
            f"{start['checkpoint']!r}, whose manifest has another digest. Name that import, or a copy of it"
        )


def with_tokenizers(recipe: dict[str, Any], source: Path | None, parts: Mapping[str, str]) -> dict[str, Any]:
    """Return a recipe with tokenizers that are there.

    Args:
        recipe: config of a run.
        source: run that `import` made, whose copies stand in for files that are gone; None for a run that was not
            imported.
        parts: "tokenizer" or "reading" -> place of `--with`, which is taken first.
    Raises:
        UserError: a tokenizer is neither where the run says nor elsewhere.
    """
    arguments = dict(recipe["model"]["init_args"])
    places = {TOKENIZERS[0]: arguments.get(TOKENIZERS[0])}
    if isinstance(second := arguments.get(TOKENIZERS[1]), dict):
        places[TOKENIZERS[1]] = second.get("tokenizer")
    if unread := sorted((parts.keys() & set(TOKENIZERS)) - {part for part, place in places.items() if place}):
        raise UserError(f"--with {unread[0]}=...: the run has no such tokenizer. Leave it out")
    imported = {} if source is None else yaml.safe_load((source / "config.yaml").read_text())["model"]["init_args"]
    for part, place in places.items():
        own = imported.get(part)
        is_copy = place == (own.get("tokenizer") if isinstance(own, dict) else own)
        copies = copies_of(source / "tokenizer", second=part == TOKENIZERS[1]) if source and is_copy else []
        gone = isinstance(place, str) and Path(place).is_absolute() and not Path(place).exists()
        if part not in parts and not (gone and copies):
            if gone:
                raise UserError(
                    f"the tokenizer {place!r} of the run no longer exists. Add --with {part}=PLACE, or --with "
                    f"{START}=RUN with the run that `import` wrote, which has a copy"
                )
            continue
        tokenizer = parts[part] if part in parts else str(copies[0].absolute())
        arguments[part] = tokenizer if part == TOKENIZERS[0] else {**second, "tokenizer": tokenizer}
    return recipe | {"model": recipe["model"] | {"init_args": arguments}}


def copies_of(folder: Path, *, second: bool) -> list[Path]:
    """List the copies of a tokenizer that `import` has written to a folder, the best one first.

    Args:
        second: True for the tokenizer of a second text, which has a folder inside if it is another one.
    """
    inside = [folder / name for name in FOLDERS] if second else []
    return [place for place in (*inside, folder) if place.is_dir()]
