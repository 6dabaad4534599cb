"""Rendered text -> runs: each stretch between two pictures is tokenised once, as a whole; labels follow characters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lit_mm.prompts.prompt import PictureRun, Run, TextRun
from lit_mm.prompts.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of rendered text. Neighbouring pieces are tokenised together.

    Attributes:
        text: as the template writes it, special tokens included.
        learn: predicting it carries loss.
    """

    text: str
    learn: bool = False


Part = Text | int  # or the number of a picture


def to_runs(parts: Sequence[Part], tokenizer: Tokenizer) -> list[Run]:
    """BOS, which is not learnt, then the parts in order.

    A token is learnt if any of its characters is: the space before an answer lies inside the answer's first token with
    most tokenizers, and is then learnt with it. Nothing depends on how a piece alone would be tokenised, which differs
    between tokenizers at the seams (whether "USER" is one token depends on what precedes it).
    """
    runs: list[Run] = [] if tokenizer.bos_id is None else [TextRun([tokenizer.bos_id], [False])]
    text, learn = "", []

    def close() -> None:
        if text:
            ids, offsets = tokenizer.encode_with_offsets(text)
            # A token without characters (a marker of the text's start) goes with the character that follows it
            runs.append(TextRun(ids, [any(learn[start : max(end, start + 1)]) for start, end in offsets]))

    for part in parts:
        if isinstance(part, Text):
            text += part.text
            learn += [part.learn] * len(part.text)
        else:
            close()
            text, learn = "", []
            runs.append(PictureRun(part))
    close()
    return runs


def written(parts: Sequence[Part], placeholder: str) -> tuple[str, list[tuple[int, int]]]:
    """The parts as one string with `placeholder` for each picture, and the learnt [start, end) spans of characters."""
    text = ""
    spans: list[tuple[int, int]] = []
    for part in parts:
        piece = part.text if isinstance(part, Text) else placeholder
        if isinstance(part, Text) and part.learn and piece:
            if spans and spans[-1][1] == len(text):
                spans[-1] = (spans[-1][0], len(text) + len(piece))
            else:
                spans.append((len(text), len(text) + len(piece)))
        text += piece
    return text, spans
