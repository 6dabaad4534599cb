"""The template of captions in LLaVA's first stage, which has only pictures and the caption."""

from __future__ import annotations

from lit_mm.documents.document import Document
from lit_mm.errors import UserError
from lit_mm.prompts.prompt import Run
from lit_mm.prompts.rendered import Part, Text, to_runs
from lit_mm.prompts.tokenizer import Tokenizer


class Plain:
    """Writes BOS, the pictures, the caption and a newline. The caption and its newline are learnt; there is no eos.

    The text of a user turn is dropped, as in the released code, because the instruction of a caption pair carries no
    information.

    Source: github.com/haotian-liu/LLaVA c121f04, `preprocess_plain` (the papers keep a random instruction instead).
    """

    def parts(self, document: Document) -> list[Part]:
        """Render a document.

        Raises:
            UserError: the document is not one caption with at least one picture before it.
        """
        roles = tuple(turn.role for turn in document.turns)
        if roles not in (("user", "assistant"), ("page",), ("user",)) or not document.pictures:
            raise UserError(
                f"document {document.id!r}: the plain template takes one caption of at least one picture, got "
                f"{len(document.pictures)} pictures and the turns {list(roles)}. Use a chat template for this data"
            )
        caption_turn = document.turns[-1]
        if caption_turn.role == "assistant" and any(not isinstance(part, str) for part in caption_turn.parts):
            raise UserError(f"document {document.id!r}: its caption contains a picture. Use `Interleaved` for pages")
        kinds = [isinstance(part, str) for part in caption_turn.parts]
        if caption_turn.role == "page" and kinds != sorted(kinds):
            raise UserError(
                f"document {document.id!r}: a picture follows text, but the plain template takes pictures first, "
                "then one caption. Use `Interleaved` for pages"
            )
        parts: list[Part] = list(range(len(document.pictures)))
        caption = "" if caption_turn.role == "user" else caption_turn.text
        if caption_turn.role == "assistant" or caption:
            parts.append(Text(f"{caption}\n", learn=True))
        return parts

    def runs(self, document: Document, tokenizer: Tokenizer) -> list[Run]:
        """See `Prompt.runs`. A document without its caption ends with its pictures."""
        return to_runs(self.parts(document), tokenizer)

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Return the ids of the newline, which ends a caption, and of eos."""
        return frozenset({tokenizer.encode("\n")[-1], tokenizer.eos_id})
