"""Results of examining a model on held-out documents."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lit_mm.documents.document import Document


@dataclass(frozen=True)
class Prediction:
    """The answer of the model to one document."""

    document: Document
    answer: str
    correct: bool


def skills_of(documents: Iterable[Document]) -> list[str]:
    """Return the skills that documents test, in order of appearance; documents without a skill add none."""
    return list(dict.fromkeys(document.skill for document in documents if document.skill))


@dataclass(frozen=True)
class Score:
    """Rates of exact matches over all documents and per skill. Documents without a skill count in `overall` alone."""

    overall: float
    skills: dict[str, float]
    count: int


@dataclass(frozen=True)
class Examination:
    """The scores and answers of a model on held-out documents.

    Attributes:
        figures: overall score and one score per skill.
        predictions: answers of the model, in the order of the documents.
    """

    figures: Score
    predictions: tuple[Prediction, ...]
