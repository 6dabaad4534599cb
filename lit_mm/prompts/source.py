"""Tokenizers by reference."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from lit_mm.assets import NANO_TOKENIZER
from lit_mm.prompts.tokenizer import Tokenizer

SUFFIXES = (".json", ".model", ".tiktoken")  # of a file, which a published name does not end in


def load_tokenizer(reference: str) -> Tokenizer:
    """The tokenizer that a config names.

    Args:
        reference: "nano" for the tokenizer of the nano world; a folder; a file (`tokenizer.json`, sentencepiece's
            `tokenizer.model`, `qwen.tiktoken`, a tekken json); or a published name, read when it is first used.
    """
    if reference == "nano":
        return Tokenizer.from_file(NANO_TOKENIZER, bos="<s>", eos="</s>", pad="<pad>")
    path = Path(reference).expanduser()
    is_path = path.exists() or path.is_absolute() or path.suffix in SUFFIXES or reference.startswith((".", "~"))
    return Tokenizer.from_pretrained(path) if is_path else PublishedTokenizer(reference)


class PublishedTokenizer:
    """Stands for a `Tokenizer` whose files may have to be downloaded, until something of it is asked for.

    Counting visual tokens asks for nothing: a recipe can be planned where its tokenizer is not.

    Args:
        name: a published name.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @cached_property
    def read(self) -> Tokenizer:
        """Raises:
        UserError: see `Tokenizer.from_pretrained`.
        """
        return Tokenizer.from_pretrained(self.name)

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__") or "name" not in self.__dict__:  # copying and pickling look for their own
            raise AttributeError(attribute)
        return getattr(self.read, attribute)
