"""Copying a tokenizer to the files of a checkpoint, with one more special token."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import tokenizers

from lit_mm.assets import NANO_TOKENIZER
from lit_mm.errors import UserError
from lit_mm.prompts.files import BYTE_PAIRS, CONFIGS, DATA
from lit_mm.prompts.source import load_tokenizer
from lit_mm.prompts.tokenizer import download

SETTINGS, FAST, PIECES = "tokenizer_config.json", "tokenizer.json", "tokenizer.model"


def save_tokenizer(reference: str, folder: Path, token: str = "") -> bool:
    """Copy the files of a tokenizer and add a special token to them, behind all others.

    Args:
        reference: see `load_tokenizer`.
        folder: the folder to write to.
        token: special token; "" adds none. Files that have the token stay as they are.
    Returns:
        True if transformers writes the token at the start of a text by itself.
    Raises:
        UserError: the files are of a kind that takes no further token, or its id is not the next one.
    """
    tokenizer, path = load_tokenizer(reference), Path(os.path.expanduser(reference))
    source = NANO_TOKENIZER if reference == "nano" else path if path.exists() else download(reference)
    if source.is_file():
        of_kind = {".json": FAST, ".tiktoken": "qwen.tiktoken"}.get(source.suffix, PIECES)
        shutil.copyfile(source, folder / (source.name if source.name in DATA else of_kind))
    beside = source.parent if source.is_file() else source
    for name in (*DATA, *BYTE_PAIRS, *CONFIGS[:3]):
        if source.is_dir() and (beside / name).is_file():
            shutil.copyfile(beside / name, folder / name)
    settings = read(folder / SETTINGS) or {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos, "pad_token": tokenizer.pad} | settings
    if token and tokenizer.vocabulary.find(token) is None:
        add_token(folder, settings, token, tokenizer.size)
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n")
    if "Llama" in settings.get("tokenizer_class", "") or not (folder / FAST).is_file():
        return bool(settings.get("add_bos_token", True))
    first = tokenizers.Tokenizer.from_file(str(folder / FAST)).encode("a").ids[0]
    return first == tokenizer.bos_id


def add_token(folder: Path, settings: dict[str, Any], token: str, number: int) -> None:
    """Add a special token to the files of a folder, and to its settings in place.

    Args:
        number: the id that it must get.
    Raises:
        UserError: see `save_tokenizer`.
    """
    if not any((folder / name).is_file() for name in (FAST, PIECES)):
        raise UserError(
            f"the tokenizer in {str(folder)!r} takes no further token {token!r}; it has neither {FAST} nor {PIECES}"
        )
    entry = {"content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    settings.setdefault("added_tokens_decoder", {})[str(number)] = entry | {"special": True}
    if (folder / FAST).is_file():
        backend = tokenizers.Tokenizer.from_file(str(folder / FAST))
        backend.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False)])
        if backend.token_to_id(token) != number:
            raise UserError(
                f"the token {token!r} would get the id {backend.token_to_id(token)} in a tokenizer of {number} ids, "
                "whose ids are not consecutive"
            )
        backend.save(str(folder / FAST))


def read(file: Path) -> dict[str, Any]:
    """Read a JSON file; {} if it is not there."""
    return json.loads(file.read_text(encoding="utf-8-sig")) if file.is_file() else {}
