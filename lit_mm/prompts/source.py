"""Tokenizers by reference."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from lit_mm.assets import NANO_TOKENIZER
from lit_mm.prompts.tokenizer import Tokenizer


def load_tokenizer(reference: str) -> Tokenizer:
    """The tokenizer that a config names.

    Args:
        reference: "nano" for the nano world's own, otherwise a folder or a published name, read by transformers. One
            with a published name is read when it is first used.
    """
    if reference == "nano":
        return Tokenizer.from_file(NANO_TOKENIZER, bos="<s>", eos="</s>", pad="<pad>")
    return Tokenizer.from_pretrained(Path(reference)) if Path(reference).exists() else PublishedTokenizer(reference)


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
