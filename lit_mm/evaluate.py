"""Accuracy per skill on held-out documents, and the blind baseline that every accuracy is reported with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

from lit_mm.data.document import Document
from lit_mm.generate import answer
from lit_mm.metrics.exact_match import exact_match

if TYPE_CHECKING:
    from lit_mm.module import MultimodalModule


@dataclass(frozen=True)
class Prediction:
    """What the model answered to one document."""

    document: Document
    answer: str
    correct: bool


@dataclass(frozen=True)
class Score:
    """Exact match: over all documents, and per skill."""

    overall: float
    skills: dict[str, float]
    count: int


def score(predictions: Sequence[Prediction]) -> Score:
    """Share of correct answers, over all and per skill (skills in order of appearance)."""
    skills: dict[str, list[bool]] = {}
    for prediction in predictions:
        skills.setdefault(prediction.document.skill, []).append(prediction.correct)
    correct = [c for answers in skills.values() for c in answers]
    return Score(
        overall=sum(correct) / max(1, len(correct)),
        skills={skill: sum(answers) / len(answers) for skill, answers in skills.items()},
        count=len(correct),
    )


def evaluate(
    module: MultimodalModule, documents: Sequence[Document], *, blind: bool = False, batch_size: int = 64
) -> list[Prediction]:
    """Ask the model every document's last question.

    Args:
        blind: ask about pictures of another document of the same skill: what the model knows without seeing.
    """
    asked = without_sight(documents) if blind else documents
    answers = answer(module, asked, batch_size=batch_size)
    return [
        Prediction(document, said, exact_match(said, document.answer))
        for document, said in zip(asked, answers, strict=True)
    ]


def without_sight(documents: Sequence[Document]) -> list[Document]:
    """Every document with the pictures of the next one of its skill."""
    by_skill: dict[str, list[int]] = {}
    for number, document in enumerate(documents):
        by_skill.setdefault(document.skill, []).append(number)
    shuffled = list(documents)
    for numbers in by_skill.values():
        for here, there in zip(numbers, numbers[1:] + numbers[:1], strict=True):
            # cycle: a document may have more pictures than the one it borrows from
            shuffled[here] = documents[here].with_pictures(cycle(documents[there].pictures))
    return shuffled
