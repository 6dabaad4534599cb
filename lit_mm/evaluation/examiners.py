"""Examiners: figures of a model on held-out documents, and the blind baseline that every figure is reported with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

from PIL import Image

from lit_mm.documents.document import Document, Picture
from lit_mm.documents.examination import Examination, Prediction
from lit_mm.evaluation.exact_match import exact_match
from lit_mm.evaluation.score import score
from lit_mm.inference.generate import answer
from lit_mm.module import MultimodalModule


class Answers:
    """Asks every document's last question and compares the answer with the document's: exact match."""

    def __call__(
        self, module: MultimodalModule, documents: Sequence[Document], *, blind: bool = False, batch_size: int = 64
    ) -> Examination:
        """See `lit_mm.module.Examiner`."""
        questions = without_sight(documents) if blind else documents
        answers = answer(module, questions, batch_size=batch_size, spread=True)
        predictions = tuple(
            Prediction(question, text, exact_match(text, question.answer))
            for question, text in zip(questions, answers, strict=True)
        )
        return Examination(score(predictions), predictions)


def examine(
    module: MultimodalModule, documents: Sequence[Document], *, blind: bool = False, batch_size: int = 64
) -> Examination:
    """An examination by the model's own examiner; `Answers` if its family names none."""
    examiner = module.examiner or Answers()
    return examiner(module, documents, blind=blind, batch_size=batch_size)


def without_sight(documents: Sequence[Document]) -> list[Document]:
    """Every document with pictures of another one: the next of its skill that shows something else.

    Where its skill has no other, the next of any skill; where nothing else has pictures at all, blank ones.
    """
    return [document.with_pictures(_others(documents, number)) for number, document in enumerate(documents)]


def _others(documents: Sequence[Document], number: int) -> Iterator[Picture]:
    """Pictures to show instead of those of document `number`, as many as are asked for."""
    pictures = documents[number].pictures
    places = [*range(number + 1, len(documents)), *range(number)]
    for place in sorted(places, key=lambda place: documents[place].skill != documents[number].skill):
        others = documents[place].pictures
        if others and not any(picture in pictures for picture in others):  # two documents may ask about one picture
            return cycle(others)  # it may have fewer
    return (Blank(picture.height, picture.width) for picture in pictures)


@dataclass(frozen=True)
class Blank:
    """A grey picture."""

    height: int
    width: int

    def read(self) -> Image.Image:
        return Image.new("RGB", (self.width, self.height), "grey")
