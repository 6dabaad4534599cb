"""Answers that come piece by piece, while they are decoded."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

from lit_mm.documents.document import Document
from lit_mm.inference.decoding import Decoding
from lit_mm.inference.features import FeatureCache
from lit_mm.inference.generate import decode, decode_steps, prompt_sample
from lit_mm.module import MultimodalModule
from lit_mm.prompts.prompt import ReadsAnswers, Settles, Stops
from lit_mm.samples.collate import collate
from lit_mm.samples.processor import Processor

BROKEN = "\ufffd"  # a decoder writes it for bytes of a character that is not complete


class Counts(NamedTuple):
    """Numbers of tokens of a prompt, with its visual tokens, and of the answer with its end."""

    prompt: int
    answer: int


def stream(
    module: MultimodalModule,
    document: Document,
    *,
    decoding: Decoding,
    until: Sequence[str] = (),
    cache: FeatureCache | None = None,
) -> Generator[str, None, Counts]:
    """Yield the pieces of the answer to one document; joined, they are the text that `answer` returns.

    The model is in evaluation mode and without gradients until the iterator ends or is closed. With a beam search the
    answer comes in one piece.

    Args:
        module: model that answers.
        document: document to answer; its own last answer is hidden.
        decoding: settings of decoding.
        until: texts that end the answer; they are left out.
        cache: features of views that were read before; None reads every view.
    Returns:
        Numbers of tokens, as the value of `yield from`.
    Raises:
        UserError: the document cannot be laid out, see `lit_mm.samples.processor.Processor.sample`.
    """
    processor = module.processor
    text = StreamedText(processor, document, until)
    sample = prompt_sample(processor, document)
    batch = collate([sample], processor.for_questions()).to(module.device)
    with module.inference(), nullcontext() if cache is None else cache.applied(module.network):
        if decoding.beams > 1:
            stops = text.stops
            (text.ids,) = decode(
                module.network, batch, stop_ids=stops.ids, stop_sequences=stops.sequences, decoding=decoding
            )
        else:
            for tokens in decode_steps(module.network, batch, stops=text.stops, decoding=decoding):
                if piece := text.add(tokens[0][1]):
                    yield piece
                if text.ended:
                    break
        if not text.ended and (piece := text.finish()):
            yield piece
    return Counts(len(sample), text.num_tokens)


class StreamedText:
    """Turns the token ids of one answer, as they come, into pieces of its text that no later token changes.

    A character whose bytes are not complete, the beginning of an end, and text that the prompt has not settled are
    withheld. So is the text by which the last token changes the text before it, such as a blank that a tokenizer drops
    before a comma.

    Args:
        processor: processor of the model.
        document: document that is answered.
        until: texts that end the answer; they are left out.
    Attributes:
        stops: ends of answers in token ids.
        ended: True once a text of `until` has been generated.
        num_tokens: number of token ids so far.
    """

    def __init__(self, processor: Processor, document: Document, until: Sequence[str] = ()) -> None:
        self.processor, self.document, self.until = processor, document, tuple(filter(None, until))
        self.stops = Stops.of(processor.prompt, processor.tokenizer)
        self.ids: list[int] = []
        self.ended = False
        self.sent = ""
        self._last = ""

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    def add(self, token: int) -> str:
        """Add a token id and return the new piece of text, which may be empty."""
        self.ids.append(token)
        prompt, ids = self.processor.prompt, self.ids[: self.stops.first_end(self.ids)[0]]
        if isinstance(prompt, ReadsAnswers):
            settled = prompt.settled(ids, self.processor.tokenizer) if isinstance(prompt, Settles) else 0
            ids = ids[:settled]
        text = self.processor.answer_text(ids[: len(ids) - begun(ids, self.stops.sequences)], self.document)
        stable, self._last = common_start(self._last, text), text
        whole, self.ended = cut(text, self.until)
        if self.ended:
            return self._send(whole)
        return self._send(stable[: len(stable) - begun(stable, self.until)].rstrip(BROKEN))

    def finish(self) -> str:
        """Return the rest of the text, after the last token id."""
        text = self.processor.answer_text(self.ids[: self.stops.first_end(self.ids)[0]], self.document)
        return self._send(cut(text, self.until)[0])

    def _send(self, text: str) -> str:
        piece = text[len(common_start(self.sent, text)) :] if len(text) > len(self.sent) else ""
        self.sent += piece
        return piece


def common_start(first: str, second: str) -> str:
    """Return the longest text with which two texts start."""
    pairs = enumerate(zip(first, second, strict=False))
    return first[: next((at for at, (left, right) in pairs if left != right), len(second))]


def cut(text: str, ends: Sequence[str]) -> tuple[str, bool]:
    """Return a text up to the first of several ends, and True if it holds one."""
    places = [place for end in ends if (place := text.find(end)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def begun(text: Sequence[Any], ends: Sequence[Sequence[Any]]) -> int:
    """Return the length of the longest proper beginning of an end at the end of a text or of a list of ids.

    Example: "a cat##" with the end "###" -> 2.
    """
    lengths = (
        length
        for end in ends
        for length in range(len(end) - 1, 0, -1)
        if tuple(text[len(text) - length :]) == tuple(end[:length])
    )
    return max(lengths, default=0)
