"""The prompt of encoder-decoders. All text before the last answer is the source, and the answer is the target."""

from __future__ import annotations

from lit_mm.documents.document import Document
from lit_mm.errors import UserError
from lit_mm.prompts.prompt import PictureRun, Run, TextRun
from lit_mm.prompts.tokenizer import Tokenizer


class TextToText:
    """Writes `<source></s>` for the encoder, then `<answer></s>`, which is learnt, for the decoder.

    Turns of the source follow each other unchanged, with pictures in their places and `separator` between two turns.

    Args:
        separator: text between two turns of the source.
    Source: T5's tokenizer ends every text, source or target, with </s>; BLIP-2 and InstructBLIP keep that.
    """

    def __init__(self, separator: str = "\n") -> None:
        self.separator = separator

    def runs(self, document: Document, tokenizer: Tokenizer) -> list[Run]:
        """See `Prompt.runs`.

        Raises:
            UserError: the document has a page of running text, or a picture in its answer.
        """
        document = document.without_line_ends()
        if any(turn.role == "page" for turn in document.turns):
            raise UserError(
                f"sample {document.id!r} is running text: an encoder-decoder needs a source and a target. "
                "Give a user turn and an assistant turn"
            )
        answered = bool(document.turns) and document.turns[-1].role == "assistant"
        runs: list[Run] = []
        text, pictures = "", 0

        def close() -> None:
            ids = tokenizer.encode(text)
            if ids:
                runs.append(TextRun(ids, [False] * len(ids)))

        for number, turn in enumerate(document.turns[:-1] if answered else document.turns):
            text += self.separator if number else ""
            for part in turn.parts:
                if isinstance(part, str):
                    text += part
                else:
                    close()
                    text = ""
                    runs.append(PictureRun(pictures))
                    pictures += 1
        close()
        runs.append(TextRun([tokenizer.eos_id], [False]))
        if answered:
            if any(not isinstance(part, str) for part in document.turns[-1].parts):
                raise UserError(
                    f"sample {document.id!r}: the answer contains a picture, but a decoder writes only text"
                )
            ids = [*tokenizer.encode(document.answer), tokenizer.eos_id]
            runs.append(TextRun(ids, [True] * len(ids)))
        return runs

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Return the id of </s>, which ends the answer."""
        return frozenset([tokenizer.eos_id])
