"""A model as the writer of a composition: it answers questions, and says which are too long for it."""

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
    """Answers questions with a model.

    Args:
        module: a model of any family whose prompt takes conversations with images.
        context: longest question, tokens; the model's own `max_length` where that is less.
        seed: of all draws; each question has its own, so that no two answers share theirs.
    """

    def __init__(self, module: MultimodalModule, context: int, seed: int = 0) -> None:
        self.module, self.seed, self.asked = module, seed, 0
        self.context = min(context, module.processor.max_length)
        self.markers = tuple(module.processor.tokenizer.special_tokens)

    def __call__(self, question: Question) -> str:
        """The model's answer, as far as it was not written for it. A marker that it spells out is left out of it, since
        later questions quote what it said."""
        decoding = replace(question.decoding, seed=stable_hash(self.seed, self.asked))
        self.asked += 1
        (text,) = answer(self.module, [question.document], decoding=decoding, continued=True)
        for marker in self.markers:
            text = text.replace(marker, "")
        return text

    def fits(self, document: Document) -> bool:
        """Is a question within the context?"""
        return len(self.module.processor.lay_out(document)) <= self.context
