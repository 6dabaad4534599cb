"""What an examination of a model on held-out documents yields."""

from __future__ import annotations

from dataclasses import dataclass

from lit_mm.documents.document import Document


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


@dataclass(frozen=True)
class Examination:
    """What a model did with held-out documents.

    Attributes:
        figures: overall figure, and one per skill.
        predictions: answers in the order of the documents.
    """

    figures: Score
    predictions: tuple[Prediction, ...]
