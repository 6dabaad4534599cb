"""Examiners, which measure a model on held-out documents, and the blind baseline reported beside every figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Protocol, runtime_checkable

from PIL import Image

from lit_mm.documents.document import Document, Picture
from lit_mm.documents.examination import Examination, Prediction
from lit_mm.evaluation.exact_match import exact_match
from lit_mm.evaluation.score import score
from lit_mm.inference.generate import answer
from lit_mm.module import MultimodalModule

MAX_NEW_TOKENS = 24  # of an answer
EXACT_MATCH = "exact match"  # measure of `Answers`


@runtime_checkable
class NamedMeasure(Protocol):
    """An examiner that names what its figures are.

    Attributes:
        measure: name of the figures in tables, such as "recall@1".
    """

    measure: str


@runtime_checkable
class NamedFigures(Protocol):
    """An examiner whose figures are not those of the documents' skills.

    Attributes:
        skills: names of the figures, in order.
    """

    skills: tuple[str, ...]


class Answers:
    """Asks the last question of every document and compares the answer with the document's by exact match."""

    def __call__(
        self, module: MultimodalModule, documents: Sequence[Document], *, blind: bool = False, batch_size: int = 64
    ) -> Examination:
        """See `lit_mm.module.Examiner`."""
        questions = without_sight(documents) if blind else documents
        answers = answer(module, questions, batch_size=batch_size, max_new_tokens=MAX_NEW_TOKENS, spread=True)
        return matched(questions, answers)


def matched(questions: Sequence[Document], answers: Sequence[str]) -> Examination:
    """Compare answers with those of the documents by exact match."""
    predictions = tuple(
        Prediction(question, text, exact_match(text, question.answer))
        for question, text in zip(questions, answers, strict=True)
    )
    return Examination(score(predictions), predictions)


def measure_of(module: MultimodalModule) -> str:
    """Return the name of the figures of a module's examiner: "accuracy" of an examiner that names none."""
    if module.examiner is None:
        return EXACT_MATCH
    return module.examiner.measure if isinstance(module.examiner, NamedMeasure) else "accuracy"


def examine(
    module: MultimodalModule, documents: Sequence[Document], *, blind: bool = False, batch_size: int = 64
) -> Examination:
    """Examine a model with its examiner, or with `Answers` if its family sets none; see `lit_mm.module.Examiner`."""
    examiner = module.examiner or Answers()
    return examiner(module, documents, blind=blind, batch_size=batch_size)


def without_sight(documents: Sequence[Document]) -> list[Document]:
    """Give every document the pictures of another document: the next one of its skill that shows other pictures.

    If its skill has no such document, the next one of any skill is used. If no other document has pictures, blank
    pictures are used.
    """
    return [document.with_pictures(_others(documents, number)) for number, document in enumerate(documents)]


def _others(documents: Sequence[Document], number: int) -> Iterator[Picture]:
    """Yield pictures to show in place of those of document `number`."""
    pictures = documents[number].pictures
    places = [*range(number + 1, len(documents)), *range(number)]
    for place in sorted(places, key=lambda place: documents[place].skill != documents[number].skill):
        others = documents[place].pictures
        if others and not any(picture in pictures for picture in others):  # two documents may ask about one picture
            return cycle(others)  # repeated, because it may have fewer pictures
    return (Blank(picture.height, picture.width) for picture in pictures)


@dataclass(frozen=True)
class Blank:
    """A grey picture."""

    height: int
    width: int

    def read(self) -> Image.Image:
        return Image.new("RGB", (self.width, self.height), "grey")
