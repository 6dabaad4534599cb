"""The source and the answer of an encoder-decoder's sample, and prompts that write no such samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from lit_mm.documents.document import Document, Picture, Turn
from lit_mm.errors import UserError
from lit_mm.samples.batch import IGNORE
from lit_mm.samples.processor import Processor, Sample


def split_answer(sample: Sample) -> int:
    """Count the tokens before the answer of an encoder-decoder's sample; the answer is all supervised tokens.

    Raises:
        UserError: there is no supervised token, no token before the answer, or an unsupervised token in or after it.
    """
    learnt = sample.labels != IGNORE
    count = int(learnt.sum())
    start = len(sample) - count
    if not 0 < start < len(sample) or not learnt[start:].all():
        raise UserError(
            f"sample {sample.document.id!r}: an encoder-decoder needs a source and then one answer that is learnt, got "
            f"{len(sample)} tokens of which {count} are learnt"
            + (", and not the last ones" if count and not learnt[start:].all() else "")
            + ". End the document with one assistant turn, and use a prompt such as `TextToText`"
        )
    return start


@dataclass(frozen=True)
class Blank:
    """A grey picture of a probe, whose pixels nothing reads.

    Attributes:
        height, width: pixels.
    """

    height: int = 64
    width: int = 64

    def read(self) -> Image.Image:
        """Draw the picture."""
        return Image.new("RGB", (self.width, self.height), (128, 128, 128))


def check_target(processor: Processor) -> None:
    """Refuse a prompt that no encoder-decoder can learn, by small probe documents.

    The probes are a question with its answer and a caption, each with and without a picture. A prompt passes if it
    divides one of them into a source and an answer, or can express none of them.

    Args:
        processor: processor of an encoder-decoder.
    Raises:
        UserError: the prompt leaves tokens behind an answer, or learns tokens of the source, in every probe.
    """
    reason: UserError | None = None
    for document in probes(with_pictures=processor.token_grid is not None):
        try:
            sample = processor.lay_out(document)
        except UserError:  # the prompt is for other documents
            continue
        try:
            split_answer(sample)
        except UserError as error:
            reason = reason or error
        else:
            return
    if reason is not None:
        raise UserError(
            f"the prompt {type(processor.prompt).__name__} does not fit an encoder-decoder, which reads a source and "
            "learns the answer behind it up to its end: it learns other tokens too, or writes tokens behind the "
            "answer. Use a prompt such as `TextToText`"
        ) from reason


def probes(*, with_pictures: bool) -> Iterator[Document]:
    """Yield small documents of all kinds: a question with its answer and a caption, with and without a picture."""
    fronts: tuple[tuple[Picture, ...], ...] = ((), (Blank(),)) if with_pictures else ((),)
    for pictures in fronts:
        yield Document("probe", (Turn("user", (*pictures, "What is it?")), Turn("assistant", ("A dog.",))))
        yield Document("probe", (Turn("page", (*pictures, "A dog on a mat.")),))
