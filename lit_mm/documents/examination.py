"""Results of examining a model on held-out documents."""

from __future__ import annotations

from dataclasses import dataclass

from lit_mm.documents.document import Document


@dataclass(frozen=True)
class Prediction:
    """The answer of the model to one document."""

    document: Document
    answer: str
    correct: bool


@dataclass(frozen=True)
class Score:
    """The rate of exact matches over all documents and per skill."""

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
