"""The template of VILA's pre-training for web pages and captions, which keeps their order and learns all text."""

from __future__ import annotations

from lit_mm.documents.document import Document
from lit_mm.errors import UserError
from lit_mm.prompts.prompt import Run
from lit_mm.prompts.rendered import Part, Text, to_runs
from lit_mm.prompts.tokenizer import Tokenizer


class Interleaved:
    """Writes BOS, text and pictures in their order, and eos. All text and the eos are learnt.

    A picture stands right before the sentence that it belongs to, and a space beside it is left out. Few-shot ability
    comes from that order, so the template moves nothing.

    Source: VILA (arXiv:2312.07533, section 3.2), github.com/NVlabs/VILA eaadb1e, llava/data/dataset.py. The released
    code also labels BOS, which nothing predicts.
    """

    def parts(self, document: Document, eos: str) -> list[Part]:
        """Render a document.

        Raises:
            UserError: the document is a conversation.
        """
        if any(turn.role != "page" for turn in document.turns) or not document.turns:
            raise UserError(
                f"document {document.id!r}: the interleaved template takes pages, got turns "
                f"{[turn.role for turn in document.turns]}. Use a chat template for conversations"
            )
        parts: list[Part] = []
        pictures = 0
        pieces = [part for turn in document.turns for part in turn.parts]
        for number, part in enumerate(pieces):
            if isinstance(part, str):
                if number and not isinstance(pieces[number - 1], str):
                    part = part.removeprefix(" ")
                if number + 1 < len(pieces) and not isinstance(pieces[number + 1], str):
                    part = part.removesuffix(" ")
                if eos in part:
                    raise UserError(
                        f"document {document.id!r}: its text contains the end-of-sequence marker {eos!r}; clean it"
                    )
                parts.append(Text(part, learn=True))
            else:
                parts.append(pictures)
                pictures += 1
        if any(isinstance(part, Text) and part.text for part in parts):  # not after pictures alone
            parts.append(Text(eos, learn=True))
        return parts

    def runs(self, document: Document, tokenizer: Tokenizer) -> list[Run]:
        """See `Prompt.runs`."""
        return to_runs(self.parts(document, tokenizer.eos), tokenizer)

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        return frozenset({tokenizer.eos_id})
