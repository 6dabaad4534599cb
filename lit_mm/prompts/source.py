"""Loading tokenizers by the references in a config."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

from lit_mm.assets import NANO_TOKENIZER
from lit_mm.prompts.files import BYTE_PAIRS, DATA, FILES
from lit_mm.prompts.tokenizer import Tokenizer
from lit_mm.weights.config_file import split_revision

SUFFIXES = (".json", ".model", ".tiktoken")  # suffixes of files, which no published name has


def load_tokenizer(reference: str) -> Tokenizer:
    """Load the tokenizer of a reference.

    Args:
        reference: "nano" for the tokenizer of the nano world; a folder; a file (`tokenizer.json`, sentencepiece's
            `tokenizer.model`, `qwen.tiktoken`, a tekken json); or a published name, which is read at the first use.
    """
    if reference == "nano":
        return Tokenizer.from_file(NANO_TOKENIZER, bos="<s>", eos="</s>", pad="<pad>")
    path = Path(os.path.expanduser(reference))
    is_path = path.exists() or path.is_absolute() or path.suffix in SUFFIXES or reference.startswith((".", "~"))
    return Tokenizer.from_pretrained(path) if is_path else PublishedTokenizer(reference)


def is_on_this_machine(tokenizer: Tokenizer | PublishedTokenizer) -> bool:
    """Return True for a tokenizer that is read without a download."""
    if not isinstance(tokenizer, PublishedTokenizer):
        return True
    from huggingface_hub import snapshot_download  # imported late: only published names need it

    try:
        name, revision = split_revision(tokenizer.name)
        patterns = list(FILES)
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=True))
    except (OSError, ValueError):  # the cache has no such name
        return False
    return any((folder / name).is_file() for name in (*DATA, *BYTE_PAIRS))


class PublishedTokenizer:
    """Stands for a `Tokenizer` whose files may need a download, and reads them at the first use.

    Counting visual tokens does not use the tokenizer, so a recipe can be planned without its files.

    Args:
        name: published name.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @cached_property
    def read(self) -> Tokenizer:
        """The tokenizer, read from its files.

        Raises:
            UserError: see `Tokenizer.from_pretrained`.
        """
        return Tokenizer.from_pretrained(self.name)

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__") or "name" not in self.__dict__:  # copying and pickling look up special methods
            raise AttributeError(attribute)
        return getattr(self.read, attribute)
