"""The writer lets a model answer the questions of a composition and tests which questions fit its context."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lit_mm.composition.compose import Question
from lit_mm.documents.document import Document
from lit_mm.inference.generate import answer
from lit_mm.stream.order import stable_hash

if TYPE_CHECKING:
    from lit_mm.module import MultimodalModule


class Writer:
    """A writer answers questions with a model.

    Args:
        module: a model of any family whose prompt accepts conversations with images.
        context: longest question, tokens; the `max_length` of the model applies if it is smaller.
        seed: seed of sampling; each question derives another seed from it.
    """

    def __init__(self, module: MultimodalModule, context: int, seed: int = 0) -> None:
        self.module, self.seed, self.num_questions = module, seed, 0
        self.context = min(context, module.processor.max_length)
        self.markers = tuple(module.processor.tokenizer.special_tokens)

    def __call__(self, question: Question) -> str:
        """Answer a question. Returns the text after the opening of the answer.

        Special tokens that the model spells out as text are removed, because later questions quote the answer.
        """
        decoding = replace(question.decoding, seed=stable_hash(self.seed, self.num_questions))
        self.num_questions += 1
        (text,) = answer(self.module, [question.document], decoding=decoding, continued=True)
        for marker in self.markers:
            text = text.replace(marker, "")
        return text

    def fits(self, document: Document) -> bool:
        """Return True if the question fits the context."""
        return len(self.module.processor.lay_out(document)) <= self.context
