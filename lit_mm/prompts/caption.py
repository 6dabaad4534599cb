"""The template of a text transformer that reads and writes captions, as in BLIP."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lit_mm.documents.document import Document
from lit_mm.errors import UserError
from lit_mm.prompts.prompt import PictureRun, Run, TextRun
from lit_mm.prompts.tokenizer import Tokenizer

PUNCTUATION = re.compile(r'[.!"()*#:;~]')
BLANKS = re.compile(r"\s{2,}")


def clean_caption(caption: str) -> str:
    """Return a caption in lower case, with single blanks in place of `. ! " ( ) * # : ; ~`, as BLIP and BLIP-2 do."""
    return BLANKS.sub(" ", PUNCTUATION.sub(" ", caption.lower())).strip()


@dataclass(frozen=True)
class Caption:
    """Writes a first token, a lead and the caption with its end token. The caption and its end are learnt.

    A user turn's text is dropped. The lead and the caption are tokenised apart; a WordPiece tokenizer, which splits at
    blanks, gives the same ids as for both together.

    Attributes:
        start_id: id of the first token. BLIP: 30522, [DEC], which stands behind BERT's vocabulary.
        lead: text before the caption that is not learnt, such as "a picture of " for BLIP's captioner.
        max_tokens: largest number of tokens with start and end; a longer caption loses its last words. BLIP: 30 in
            pre-training, 35 in retrieval, 40 in captioning.
        max_words: largest number of words. BLIP: 30 in pre-training and retrieval, 50 in captioning.
        clean: True writes the caption in lower case, with blanks in place of `. ! " ( ) * # : ; ~`, as BLIP does.
    Source: data/utils.py, `pre_caption`, and models/blip.py of github.com/salesforce/BLIP.
    """

    start_id: int
    lead: str = ""
    max_tokens: int = 30
    max_words: int = 30
    clean: bool = True

    def runs(self, document: Document, tokenizer: Tokenizer) -> list[Run]:
        """Convert a document to runs; without its answer, it ends with the lead.

        Raises:
            UserError: the document is not one caption of one picture.
        """
        roles = tuple(turn.role for turn in document.turns)
        if roles not in (("user", "assistant"), ("page",), ("user",)) or len(document.pictures) != 1:
            raise UserError(
                f"document {document.id!r}: this template takes one caption of one picture, got "
                f"{len(document.pictures)} pictures and the turns {list(roles)}. Use data of captions"
            )
        ids = [self.start_id, *tokenizer.encode(self.lead)]
        learn = [False] * len(ids)
        text = document.turns[-1].text if roles != ("user",) else ""
        if text or document.turns[-1].role == "assistant":
            caption = tokenizer.encode(self.normalise(text))[: max(self.max_tokens - 1 - len(ids), 0)]
            ids += [*caption, tokenizer.eos_id]
            learn += [True] * (len(caption) + 1)
        return [PictureRun(0), TextRun(ids, learn)]

    def normalise(self, caption: str) -> str:
        """Return the caption as the model reads it."""
        words = (clean_caption(caption) if self.clean else caption).strip().split(" ")
        return " ".join(words[: self.max_words])

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Return the id of the end token."""
        return frozenset({tokenizer.eos_id})
