"""Tokenizers by reference."""

from __future__ import annotations

from pathlib import Path

from lit_mm.nano import NANO_TOKENIZER
from lit_mm.prompts.tokenizer import Tokenizer


def load_tokenizer(reference: str) -> Tokenizer:
    """The tokenizer that a config names.

    Args:
        reference: "nano" for the nano world's own, otherwise a folder or a published name, read by transformers.
    """
    if reference == "nano":
        return Tokenizer.from_file(NANO_TOKENIZER, bos="<s>", eos="</s>", pad="<pad>")
    return Tokenizer.from_pretrained(Path(reference) if Path(reference).exists() else reference)
