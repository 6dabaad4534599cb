"""A conversation with a model: questions, images and answers that stay in the prompt of the next question."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from lit_mm.documents.document import Document, Picture, Turn
from lit_mm.errors import UserError
from lit_mm.inference.decoding import Decoding
from lit_mm.inference.features import FeatureCache
from lit_mm.inference.generate import prompt_sample
from lit_mm.inference.streaming import stream
from lit_mm.module import MultimodalModule
from lit_mm.samples.processor import Processor, Sample

PROBE = "a"  # text of every turn of the probe


@dataclass(frozen=True)
class Blank:
    """A black picture, to try a prompt with."""

    width: int = 64
    height: int = 64

    def read(self) -> Image.Image:
        return Image.new("RGB", (self.width, self.height))


def takes_several_turns(processor: Processor) -> bool:
    """Return True if the prompt can express a second question; the templates of captions cannot.

    The prompt is tried on a small conversation about one picture.
    """
    pictures = () if processor.token_grid is None else (Blank(),)
    first, answer = Turn("user", (*pictures, PROBE)), Turn("assistant", (PROBE,))
    document = Document("probe", (first, answer, Turn("user", (PROBE,))))
    try:
        processor.prompt.runs(document, processor.tokenizer)
        if processor.reading is not None:
            processor.reading(document)
    except UserError:
        return False
    return True


class Chat:
    """Asks a model one question after the other. The vision encoder reads each image once.

    If the prompt takes one turn, every question is asked alone, with all images.

    Args:
        module: model that answers.
        decoding: settings of decoding.
    Attributes:
        turns: questions and answers so far.
        pictures: images that the next question shows.
        several: True if a prompt holds earlier questions and answers.
    """

    def __init__(self, module: MultimodalModule, decoding: Decoding) -> None:
        self.module, self.decoding = module, decoding
        self.several = takes_several_turns(module.processor)
        self.cache = FeatureCache()
        self.turns: tuple[Turn, ...] = ()
        self.pictures: tuple[Picture, ...] = ()

    def show(self, picture: Picture) -> None:
        """Put an image in front of the next question."""
        self.pictures += (picture,)

    def start_over(self) -> None:
        """Forget all questions, answers and images."""
        self.turns, self.pictures = (), ()
        self.cache = FeatureCache()

    def ask(self, question: str) -> Iterator[str]:
        """Yield the pieces of the answer. Question and answer are remembered, unless no piece has come.

        An answer that is closed before its end is remembered as far as it goes.

        Raises:
            UserError: the prompt cannot express the question, or it is longer than the model takes.
        """
        turns = (*(self.turns if self.several else ()), Turn("user", (*self.pictures, question)))
        answer = ""
        try:
            for piece in stream(self.module, Document("chat", turns), decoding=self.decoding, cache=self.cache):
                answer += piece
                yield piece
        finally:
            if answer:
                self.turns = (*turns, Turn("assistant", (answer,)))
                if self.several:
                    self.pictures = ()

    def prompt(self) -> Sample | None:
        """Return the prompt of the last answer as the model reads it; None before the first answer."""
        return prompt_sample(self.module.processor, Document("chat", self.turns)) if self.turns else None
