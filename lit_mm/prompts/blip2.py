"""The templates of BLIP-2: a caption after the visual tokens, and a caption split between encoder and decoder."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from lit_mm.documents.document import Document
from lit_mm.errors import UserError
from lit_mm.prompts.caption import clean_caption
from lit_mm.prompts.prompt import PictureRun, Run, TextRun
from lit_mm.prompts.tokenizer import Tokenizer


def caption_of(document: Document, template: str, clean: bool) -> str | None:
    """Return the caption of a document; None if it has none, so that the model is asked for it.

    The text of a user turn is dropped, because a caption has no instruction.

    Args:
        document: one caption of at least one picture.
        template: name of the template, for errors.
        clean: True writes the caption as `lit_mm.prompts.caption.clean_caption` does.
    Raises:
        UserError: the document is not one caption with pictures before it.
    """
    document = document.without_line_ends()
    roles = tuple(turn.role for turn in document.turns)
    if roles not in (("user", "assistant"), ("page",), ("user",)) or not document.pictures:
        raise UserError(
            f"document {document.id!r}: {template} takes one caption of at least one picture, got "
            f"{len(document.pictures)} pictures and the turns {list(roles)}. Use data of captions"
        )
    last = document.turns[-1]
    if last.role == "user" or (last.role == "page" and not last.text):
        return None
    return clean_caption(last.text) if clean else last.text.strip()


def draw(document: Document, count: int) -> int:
    """Draw a number below `count` by the id of a document: always the same for one document."""
    return int.from_bytes(blake2b(document.id.encode(), digest_size=8).digest()) % count


@dataclass(frozen=True)
class Blip2Caption:
    """Writes the pictures, a first token, a lead, the caption and a newline.

    Without a lead all tokens are learnt, also the first, which the last visual token predicts. With a lead the first
    token and the lead are not learnt. The lead and the caption are tokenised apart, with the blank at the caption.

    Attributes:
        lead: text before the caption; "a photo of" for the captioner, "" in the second stage.
        max_tokens: largest number of text tokens; a longer caption loses its end, the newline included.
        clean: True writes captions in lower case and without punctuation, see `lit_mm.prompts.caption.clean_caption`.
    Source: lavis/models/blip2_models/blip2_opt.py of github.com/salesforce/LAVIS.
    """

    lead: str = ""
    max_tokens: int = 32
    clean: bool = True

    def runs(self, document: Document, tokenizer: Tokenizer) -> list[Run]:
        """See `Prompt.runs`. A document without its caption ends with the lead, or with the first token."""
        caption = caption_of(document, "Blip2Caption", self.clean)
        before = tokenizer.encode(self.lead) if self.lead else []
        if tokenizer.bos_id is not None:
            before = [tokenizer.bos_id, *before]
        learn = [not self.lead] * len(before)
        ids = before
        if caption is not None:
            ids = [*before, *tokenizer.encode(f" {caption}" if self.lead else caption), newline(tokenizer)]
            learn += [True] * (len(ids) - len(before))
        pictures: list[Run] = [PictureRun(number) for number in range(len(document.pictures))]
        cut = ids[: self.max_tokens]
        return [*pictures, TextRun(cut, learn[: len(cut)])] if cut else pictures

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Return the ids of the newline, which ends a caption, and of eos."""
        return frozenset({newline(tokenizer), tokenizer.eos_id})


def newline(tokenizer: Tokenizer) -> int:
    """Return the id of a newline."""
    return tokenizer.encode("\n")[-1]


@dataclass(frozen=True)
class PrefixSplit:
    """Splits a caption: the encoder reads the pictures, the prefix and eos, the decoder writes the suffix and eos.

    The prefix has 1 to n // 2 of the n words of the caption, drawn uniformly by the id of the document, so a document
    has the same split in every epoch. A caption of one word has no prefix, and neither has a caption to be written.
    The released code has no split; its author states a uniform draw from position 1 to the middle.

    Example: the caption "a cat on a mat" with the prefix "a cat" is `<pictures> a cat </s>` for the encoder and
    `on a mat </s>`, which is learnt, for the decoder.

    Attributes:
        lead: text that the encoder reads in place of a prefix, as the captioner does ("a photo of"); "" splits.
        max_tokens: largest number of tokens of each side; the end is cut off, the eos kept.
        clean: True writes captions in lower case and without punctuation, see `lit_mm.prompts.caption.clean_caption`.
    Source: arXiv:2301.12597, section 3.3; lavis/models/blip2_models/blip2_t5.py of github.com/salesforce/LAVIS.
    """

    lead: str = ""
    max_tokens: int = 32
    clean: bool = True

    def runs(self, document: Document, tokenizer: Tokenizer) -> list[Run]:
        """See `Prompt.runs`. A document without its caption ends with the lead and eos."""
        caption = caption_of(document, "PrefixSplit", self.clean)
        prefix, suffix = (self.lead, caption or "") if self.lead or caption is None else self.split(document, caption)
        source = [*tokenizer.encode(prefix)[: self.max_tokens - 1], tokenizer.eos_id]
        runs: list[Run] = [PictureRun(number) for number in range(len(document.pictures))]
        runs.append(TextRun(source, [False] * len(source)))
        if caption is not None:
            target = [*tokenizer.encode(suffix)[: self.max_tokens - 1], tokenizer.eos_id]
            runs.append(TextRun(target, [True] * len(target)))
        return runs

    def split(self, document: Document, caption: str) -> tuple[str, str]:
        """Split a caption into (prefix, suffix)."""
        words = caption.split()
        middle = len(words) // 2
        place = 1 + draw(document, middle) if middle else 0
        return " ".join(words[:place]), " ".join(words[place:])

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Return the id of eos, which ends the suffix."""
        return frozenset({tokenizer.eos_id})
