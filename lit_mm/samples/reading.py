"""Readings: a second text of every sample, in another vocabulary, for a Q-Former or a text encoder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from lit_mm.documents.document import Document
from lit_mm.errors import UserError
from lit_mm.prompts.caption import clean_caption
from lit_mm.prompts.source import load_tokenizer
from lit_mm.prompts.tokenizer import Tokenizer

BERT_FIRST, BERT_LAST = 101, 102  # [CLS] and [SEP] of bert-base-uncased


@dataclass(frozen=True)
class Reading:
    """Writes the second text of a document: a first token, the caption or the instruction, and a last token.

    Example with `max_length` 5, first 101 and last 102: the tokens 7 8 9 6 become 101 7 8 9 102 if the end is cut off,
    and 101 8 9 6 102 if the start is.

    Attributes:
        tokenizer: reference of the tokenizer, see `lit_mm.prompts.source.load_tokenizer`.
        text: "caption", the text of the last assistant or page turn; "instruction", the text of the user turn; or
            "none", so that a Q-Former that could read a text reads the image alone.
        first_id, last_id: ids of the first and the last token; BERT has 101 ([CLS]) and 102 ([SEP]).
        max_length: largest number of tokens, with the first and the last. BLIP-2: 32; InstructBLIP: 128.
        cut: side at which a longer text loses tokens.
        clean: True writes the text in lower case and without punctuation, see `lit_mm.prompts.caption.clean_caption`.
            BLIP-2 does so with captions.
    Raises:
        UserError: there is no room for a token between the first and the last.
    """

    tokenizer: str
    text: Literal["caption", "instruction", "none"] = "caption"
    first_id: int = BERT_FIRST
    last_id: int = BERT_LAST
    max_length: int = 32
    cut: Literal["right", "left"] = "right"
    clean: bool = False

    def __post_init__(self) -> None:
        if self.max_length < 3:
            raise UserError(f"Reading: `max_length` is at least 3 tokens, got {self.max_length}")

    def __call__(self, document: Document) -> np.ndarray:
        """Return the [L] token ids of a document's second text; [0] if `text` is "none".

        Raises:
            UserError: a document has several instructions, of which only one can be read.
        """
        if self.text == "none":
            return np.zeros(0, dtype=np.int64)
        text = self.text_of(document)
        ids = _tokenizer(self.tokenizer).encode(clean_caption(text) if self.clean else text)
        room = self.max_length - 2
        ids = ids[:room] if self.cut == "right" else ids[max(0, len(ids) - room) :]
        return np.array([self.first_id, *ids, self.last_id], dtype=np.int64)

    def decoded(self, document: Document) -> str:
        """Return the text of the token ids between the first and the last, after the cut.

        Raises:
            UserError: see `__call__`.
        """
        return _tokenizer(self.tokenizer).decode(self(document)[1:-1].tolist(), skip_special=False)

    def text_of(self, document: Document) -> str:
        """Return the caption or the instruction of a document; "" if it has none.

        Raises:
            UserError: see `__call__`.
        """
        document = document.without_line_ends()
        if self.text == "caption":
            last = document.turns[-1] if document.turns else None
            return last.text if last is not None and last.role in ("assistant", "page") else ""
        questions = [turn.text for turn in document.turns if turn.role == "user"]
        if len(questions) > 1:
            raise UserError(
                f"sample {document.id!r}: the Q-Former reads one instruction, got {len(questions)} user turns. "
                "Give one document per question"
            )
        return questions[0].strip() if questions else ""


@lru_cache
def _tokenizer(reference: str) -> Tokenizer:
    return load_tokenizer(reference)
