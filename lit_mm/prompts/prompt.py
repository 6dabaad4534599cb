"""Prompts turn a document into runs of token ids and the places of its pictures, in reading order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from lit_mm.documents.document import Document
from lit_mm.prompts.tokenizer import Tokenizer

PICTURE = -100  # stands for a picture in the id sequence that a label rule reads


@dataclass(frozen=True, slots=True)
class TextRun:
    """Tokens in a row.

    Attributes:
        ids: token ids.
        learn: flag per token; True if its prediction carries loss.
        apart: number of answers that are tokenised apart from the prompt before them, because their first characters
            would merge with it.
    """

    ids: list[int]
    learn: list[bool]
    apart: int = 0

    def __post_init__(self) -> None:
        assert len(self.ids) == len(self.learn), f"{len(self.ids)} ids, {len(self.learn)} label flags"


@dataclass(frozen=True, slots=True)
class PictureRun:
    """The place of `document.pictures[number]`, counted from 0. Pictures are never learnt."""

    number: int


Run = TextRun | PictureRun


class Prompt(Protocol):
    """The chat template of a family."""

    def runs(self, document: Document, tokenizer: Tokenizer) -> list[Run]:
        """Convert a document to runs, in order.

        A document whose last turn is the user's ends with the tokens after which the assistant speaks, so that
        generation starts from `runs(document.without_answer(), tokenizer)`. A page without any text ends with what
        precedes the text in training, so that a caption can be asked for.

        The ids of that prompt are a prefix of the ids of the whole document, and what follows it up to the end of the
        answer is learnt. `answers_apart` counts the answers for which this needs a seam.

        Raises:
            UserError: the template cannot express the document, or the tokenizer lacks one of its markers.
        """
        ...

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Return the ids of the tokens that end the assistant's turn in generation."""
        ...


@runtime_checkable
class ReadsAnswers(Protocol):
    """A prompt whose answers hold more than text, such as coordinates that a tokenizer cannot write out by itself."""

    def answer_text(self, ids: Sequence[int], document: Document, tokenizer: Tokenizer) -> str:
        """Convert generated token ids, without stop tokens, to the text of an answer to `document`."""
        ...


def answers_apart(runs: Sequence[Run]) -> int:
    """Count the answers that are tokenised apart from their prompt; most documents have none."""
    return sum(run.apart for run in runs if isinstance(run, TextRun))
