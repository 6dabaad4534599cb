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


@runtime_checkable
class Settles(Protocol):
    """A prompt that reads answers and says which part of an unfinished answer is final, so that it can be streamed."""

    def settled(self, ids: Sequence[int], tokenizer: Tokenizer) -> int:
        """Return the number of generated tokens, from the first, whose text does not depend on tokens to come."""
        ...


@runtime_checkable
class StopsAtSequences(Protocol):
    """A prompt whose answers may end with several tokens in a row, such as "###" in Llama's vocabulary."""

    def stop_sequences(self, tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
        """Return the sequences of ids, of at least two tokens each, that end the assistant's turn in generation."""
        ...


@dataclass(frozen=True)
class Stops:
    """The ends of answers in token ids.

    Attributes:
        ids: ids of single tokens.
        sequences: ids of several tokens in a row.
    """

    ids: frozenset[int]
    sequences: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(cls, prompt: Prompt, tokenizer: Tokenizer) -> Stops:
        """Collect the ends of a prompt's answers."""
        sequences = prompt.stop_sequences(tokenizer) if isinstance(prompt, StopsAtSequences) else ()
        return cls(prompt.stop_ids(tokenizer), sequences)

    def length(self, ids: Sequence[int]) -> int:
        """Return the number of tokens at the end of `ids` that end an answer; 0 if the answer goes on.

        Example with the single token 2 and the sequence 7 8: [5, 7, 8] -> 2, [5, 2] -> 1, [7, 5] -> 0.
        """
        if ids and ids[-1] in self.ids:
            return 1
        return next((len(end) for end in self.sequences if tuple(ids[-len(end) :]) == end), 0)

    def first_end(self, ids: Sequence[int]) -> tuple[int, int]:
        """Return the places [start, stop) of the first end in `ids`; both are their number if there is none."""
        for stop in range(1, len(ids) + 1):
            if length := self.length(ids[:stop]):
                return stop - length, stop
        return len(ids), len(ids)


def answers_apart(runs: Sequence[Run]) -> int:
    """Count the answers that are tokenised apart from their prompt; most documents have none."""
    return sum(run.apart for run in runs if isinstance(run, TextRun))
