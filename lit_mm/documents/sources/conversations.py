"""Conversations about images: the formats of LLaVA, Qwen-VL and XComposer. One JSON list, or one object a line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lit_mm.documents.document import Turn
from lit_mm.documents.sources.parts import Part, open_entries
from lit_mm.documents.sources.source import LIMIT_PIXELS, Sample, Source, SourcePicture, names_in
from lit_mm.documents.sources.storage import Blob
from lit_mm.documents.turns import PLACEHOLDER, SPEAKERS, conversation_to_document

BOX = re.compile(r"<box>(.*?)</box>", re.DOTALL)
QUAD = re.compile(r"<quad>(.*?)</quad>", re.DOTALL)
POINT = re.compile(r"\(\s*(-?\d+)\s*,\s*(-?\d+)\s*\)")
IMG = re.compile(r"<img>(.*?)</img>", re.DOTALL)


class Conversations(Source):
    """Entries of `{"id": ..., "image": ..., "conversations": [{"from": ..., "value": text}]}`."""

    expected = "conversation"
    has_ids = True
    placeholder = "<image>"  # stands for a picture in the text

    def open_part(self, path: str) -> Part:
        return open_entries(path, self.expected)

    def blobs(self, sample: Sample) -> list[Blob]:
        self.conversation(sample)  # an entry of another format is told of before its images are
        return [self.blob(name, sample) for name in names_in(sample.entry.get("image"))]

    def spoken(self, sample: Sample) -> list[tuple[str, str]]:
        """(role, text) of every turn.

        Raises:
            SampleError: a turn lacks a key, has an unknown speaker, or is an empty answer.
        """
        turns = []
        for number, turn in enumerate(self.conversation(sample)):
            if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str) or "from" not in turn:
                raise sample.error(
                    f"turn {number} needs the keys 'from' and 'value', both text, got {str(turn)[:80]!r}", "bad_entry"
                )
            role = SPEAKERS.get(str(turn["from"]).lower())
            if role is None:
                raise sample.error(
                    f"turn {number}: 'from' is one of {sorted(SPEAKERS)}, got {turn['from']!r}", "bad_entry"
                )
            if role == "assistant" and not turn["value"].strip():
                raise sample.error(
                    f"the answer in turn {number} is empty", "empty_answer", "Write it, or remove the turn"
                )
            turns.append((role, turn["value"]))
        return turns

    def count_places(self, sample: Sample, turns: Sequence[tuple[str, str]], pictures: int, *, free: int = 0) -> None:
        """Compare placeholders with pictures.

        Args:
            free: so many pictures alone may go without a placeholder.
        Raises:
            SampleError: they differ in number.
        """
        places = sum(value.count(self.placeholder) for _, value in turns)
        if places != pictures and (places or pictures > free):
            raise sample.error(
                f"its text has {places} x {self.placeholder}, its `image` names {pictures}",
                "placeholder_mismatch",
                "Write one for each image",
            )

    @staticmethod
    def conversation(sample: Sample) -> list[Any]:
        return sample.field("conversations", list, "an entry is an object with a list `conversations`")


class LlavaConversations(Conversations):
    """LLaVA's format: `from` is human or gpt, `<image>` stands for a picture, `image` names one or several, or none.

    Text stays as it is written, white space included. A leading turn of the assistant is left out, as the released code
    does: nothing asks for it.

    Args:
        path, images, name, limit_pixels: see `Source`.
        image_first: where a turn has one picture, put it in front, a newline after it, and strip the text, as the
            released code does for its own models.
    Source: `preprocess_multimodal` and the templates in llava/train/train.py.
    """

    def __init__(
        self,
        path: str,
        images: str | None = None,
        name: str | None = None,
        image_first: bool = False,
        limit_pixels: int = LIMIT_PIXELS,
    ) -> None:
        self.image_first = image_first
        super().__init__(path, images, name, limit_pixels)

    def spoken(self, sample: Sample) -> list[tuple[str, str]]:
        turns = super().spoken(sample)
        return turns[1:] if turns and turns[0][0] == "assistant" else turns

    def turns(self, sample: Sample, pictures: Sequence[SourcePicture]) -> tuple[Turn, ...]:
        spoken = self.spoken(sample)
        self.count_places(sample, spoken, len(pictures))
        left = iter(pictures)
        return tuple(Turn(role, self._parts(value, left)) for role, value in spoken)

    def _parts(self, value: str, pictures: Iterator[SourcePicture]) -> tuple[str | SourcePicture, ...]:
        if self.image_first and value.count(self.placeholder) == 1:
            value = f"{self.placeholder}\n{value.replace(self.placeholder, '').strip()}".strip()
        head, *rest = value.split(self.placeholder)
        parts: list[str | SourcePicture] = [head]
        for text in rest:
            parts += [next(pictures), text]
        return tuple(part for part in parts if part != "")


class QwenVLConversations(Conversations):
    """Qwen-VL's format: `from` is user or assistant, pictures are written into the text as `<img>path</img>`.

    What stands around them (`Picture 1: `) and the marks of regions stay in the text: `<ref>phrase</ref>` and
    `<box>(x1,y1),(x2,y2)</box>` or `<quad>` with four points, whole numbers from 0 to 999 across the picture.
    The tags `<img>` and `</img>` go; the family's prompt writes what it needs.

    Source: arXiv:2308.12966, section 3.3; README (fine-tuning) of the release.
    """

    def blobs(self, sample: Sample) -> list[Blob]:
        if isinstance(sample.entry, Mapping) and sample.entry.get("image"):
            raise sample.error(
                "Qwen-VL's format has no `image`",
                "bad_entry",
                "Write <img>path</img> into the text, or correct `format`",
            )
        return [self.blob(name.strip(), sample) for _, value in self.spoken(sample) for name in IMG.findall(value)]

    def turns(self, sample: Sample, pictures: Sequence[SourcePicture]) -> tuple[Turn, ...]:
        spoken = self.spoken(sample)
        opened = sum(value.count("<img>") for _, value in spoken)
        closed = sum(value.count("</img>") for _, value in spoken)
        if not opened == closed == len(pictures):
            raise sample.error(
                f"its text opens {opened} x <img> and closes {closed}",
                "placeholder_mismatch",
                "Write <img>path</img> for each image",
            )
        for _, value in spoken:
            for text in BOX.findall(value):
                self._check_region(sample, "box", text, points=2)
            for text in QUAD.findall(value):
                self._check_region(sample, "quad", text, points=4)
        left = iter(pictures)
        return tuple(Turn(role, self._parts(value, left)) for role, value in spoken)

    @staticmethod
    def _parts(value: str, pictures: Iterator[SourcePicture]) -> tuple[str | SourcePicture, ...]:
        pieces = IMG.split(value)  # text and path by turns
        return tuple(next(pictures) if at % 2 else text for at, text in enumerate(pieces) if at % 2 or text)

    def _check_region(self, sample: Sample, kind: str, text: str, points: int) -> None:
        corners = [(int(x), int(y)) for x, y in POINT.findall(text)]
        if len(corners) != points or POINT.sub("", text).strip(" ,"):
            raise sample.error(
                f"a <{kind}> holds {points} points (x,y) of whole numbers, got {text[:60]!r}",
                "bad_entry",
                "Multiply fractions by 1000",
            )
        outside = [number for point in corners for number in point if not 0 <= number < 1000]
        if outside:
            raise sample.error(
                f"<{kind}>{text}</{kind}> leaves the picture: {outside} not in 0 to 999",
                "box_outside",
                "Scale it to thousandths of the picture's width and height, 999 at most",
            )
        if kind == "box" and not (corners[0][0] <= corners[1][0] and corners[0][1] <= corners[1][1]):
            raise sample.error(
                f"<box>{text}</box> has its corners the wrong way round",
                "box_outside",
                "Write the top left corner first",
            )


class XComposerConversations(Conversations):
    """XComposer's format: `from` is user or assistant, `<ImageHere>` stands for a picture, `image` names them.

    A single picture may go without placeholder; see `conversation_to_document`, which also strips every turn's text.
    """

    placeholder = PLACEHOLDER

    def turns(self, sample: Sample, pictures: Sequence[SourcePicture]) -> tuple[Turn, ...]:
        self.count_places(sample, self.spoken(sample), len(pictures), free=1)
        return conversation_to_document(self.conversation(sample), pictures, id=sample.identity).turns
