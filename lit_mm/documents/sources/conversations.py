"""Conversations about images in the formats of LLaVA, Qwen-VL and XComposer: a JSON list, or one object per line."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

from lit_mm.documents.document import Turn
from lit_mm.documents.sources.blobs import Blob
from lit_mm.documents.sources.cells import cells_in
from lit_mm.documents.sources.chat import check_answers, spoken_turns, with_system
from lit_mm.documents.sources.entries import open_entries
from lit_mm.documents.sources.keys import MEDIA, PICTURES, check_keys
from lit_mm.documents.sources.parquet import LIMIT_GROUP
from lit_mm.documents.sources.part import Part
from lit_mm.documents.sources.picture import LIMIT_PIXELS, SourcePicture
from lit_mm.documents.sources.placeholders import LITERAL, check_placeholders
from lit_mm.documents.sources.sample import Sample
from lit_mm.documents.sources.source import Source
from lit_mm.documents.turns import PLACEHOLDER, conversation_to_document

BOX = re.compile(r"<box>(.*?)</box>", re.DOTALL)
QUAD = re.compile(r"<quad>(.*?)</quad>", re.DOTALL)
REGION_TAG = re.compile(r"<(/?)(box|quad|ref)>")
POINT = re.compile(r"\(\s*(-?\d+)\s*,\s*(-?\d+)\s*\)")
IMG = re.compile(r"<img>(.*?)</img>", re.DOTALL)


class Conversations(Source):
    """Reads entries of `{"id": ..., "image": ..., "conversations": [{"from": ..., "value": text}]}`.

    `image` or `images` names one picture or several: paths, URLs, base64, or objects with bytes. Turns may have the
    keys `role` and `content`, and the entry a `system` text.

    Args:
        path, images, name, limit_pixels, places: see `Source`.
        literal_placeholders: if True, placeholders in rows without pictures are text, such as HTML or code.
        limit_group: largest number of bytes of a row group of a parquet, see `ParquetRows`.
    """

    expected = "conversation"
    has_ids = True
    format_name = ""  # in declarations
    placeholder = "<image>"  # stands for a picture in the text
    remedy = ""  # see `check_keys`

    def __init__(
        self,
        path: str,
        images: str | None = None,
        name: str | None = None,
        limit_pixels: int = LIMIT_PIXELS,
        literal_placeholders: bool = False,
        limit_group: int = LIMIT_GROUP,
        places: str | None = None,
    ) -> None:
        self.literal_placeholders, self.limit_group = literal_placeholders, limit_group
        super().__init__(path, images, name, limit_pixels, places)

    def open_part(self, path: str) -> Part:
        return open_entries(path, self.expected, limit_group=self.limit_group)

    def blobs(self, sample: Sample) -> list[Blob]:
        turns = self.turns_of(sample)  # an entry of another format is reported before its images are
        cells = self.cells(sample)
        if self.is_literal(sample):
            self._note_placeholders(turns, sample)
        else:
            check_placeholders(
                sample,
                turns,
                placeholder=self.placeholder,
                format_name=self.format_name,
                has_media=bool(cells) or any(sample.entry.get(key) for key in (*PICTURES, *MEDIA)),
            )
        check_keys(sample, PICTURES, has_pictures=bool(cells), remedy=self.remedy)
        return [self.blob(cell, sample) for cell in cells]

    def cells(self, sample: Sample) -> list[Any]:
        """Return the cells of the sample's pictures.

        Raises:
            SampleError: `image` and `images` differ.
        """
        filled = [cells for key in PICTURES if (cells := list(cells_in(sample.entry.get(key))))]
        if len(filled) > 1 and filled[0] != filled[1]:
            raise sample.error("has `image` and `images`, which differ", "bad_entry", "Keep one of them")
        return filled[0] if filled else []

    def is_literal(self, sample: Sample) -> bool:
        """Return True if placeholders of the sample are text."""
        return self.literal_placeholders and not self.cells(sample)

    def _note_placeholders(self, turns: Sequence[tuple[str, str]], sample: Sample) -> None:
        if any(self.placeholder in text for _, text in turns):
            sample.notes.add(LITERAL)

    def turns_of(self, sample: Sample) -> list[tuple[str, str]]:
        """Return (role, text) of every turn. The turns of a sample are parsed once; for the errors see `spoken`."""
        return sample.once("turns", lambda: self.spoken(sample))

    def spoken(self, sample: Sample) -> list[tuple[str, str]]:
        """Parse (role, text) of every turn.

        Raises:
            SampleError: a turn lacks a key or has an unknown speaker.
        """
        turns = sample.field("conversations", list, "an entry is an object with a list `conversations`")
        return with_system(spoken_turns(turns, sample), sample)

    def turns(self, sample: Sample, pictures: Sequence[SourcePicture | None]) -> tuple[Turn, ...]:
        spoken = self.turns_of(sample)
        check_answers(spoken, sample)
        return self.arrange(sample, spoken, pictures)

    @abstractmethod
    def arrange(
        self, sample: Sample, spoken: list[tuple[str, str]], pictures: Sequence[SourcePicture | None]
    ) -> tuple[Turn, ...]:
        """Return the turns with the pictures in their places.

        Raises:
            SampleError: placeholders and pictures do not fit.
        """

    def count_places(self, sample: Sample, turns: Sequence[tuple[str, str]], pictures: int, *, free: int = 0) -> None:
        """Compare placeholders with pictures.

        Args:
            free: largest number of pictures that need no placeholder if the text has none.
        Raises:
            SampleError: the numbers differ.
        """
        places = sum(value.count(self.placeholder) for _, value in turns)
        if places != pictures and (places or pictures > free):
            key = next((key for key in PICTURES if sample.entry.get(key)), "image")
            raise sample.error(
                f"its text has {places} x {self.placeholder}, its `{key}` names {pictures}",
                "placeholder_mismatch",
                "Write one for each image"
                if pictures
                else f"Name the image, or declare {self.placeholder} in rows without pictures as text "
                "(`literal_placeholders: true`)",
            )

    def place(self, turns: Sequence[tuple[str, str]], pictures: Sequence[SourcePicture]) -> tuple[Turn, ...]:
        """Replace placeholders by pictures, in order. All other text stays."""
        rest = iter(pictures)
        return tuple(Turn(role, _split(text, self.placeholder, rest)) for role, text in turns)


def _split(text: str, placeholder: str, pictures: Iterator[SourcePicture]) -> tuple[str | SourcePicture, ...]:
    head, *others = text.split(placeholder)
    parts: list[str | SourcePicture] = [head]
    for piece in others:
        parts += [next(pictures), piece]
    return tuple(part for part in parts if part != "")


class LlavaConversations(Conversations):
    """Reads LLaVA's and ShareGPT's format: `from` is human or gpt, `<image>` stands for a picture that `image` names.

    Text stays as it is, white space included. A leading turn of the assistant is left out, as in the released code,
    because no question precedes it.

    Args:
        path, images, name, limit_pixels, places: see `Source`.
        image_first: if True, the only picture of a turn moves to the front with a newline after it, and the text is
            stripped, as the released code does for its own models.
        literal_placeholders, limit_group: see `Conversations`.
    Source: `preprocess_multimodal` and the templates in llava/train/train.py.
    """

    format_name = text_format = "llava"

    def __init__(
        self,
        path: str,
        images: str | None = None,
        name: str | None = None,
        image_first: bool = False,
        limit_pixels: int = LIMIT_PIXELS,
        literal_placeholders: bool = False,
        limit_group: int = LIMIT_GROUP,
        places: str | None = None,
    ) -> None:
        self.image_first = image_first
        super().__init__(path, images, name, limit_pixels, literal_placeholders, limit_group, places)

    def spoken(self, sample: Sample) -> list[tuple[str, str]]:
        turns = super().spoken(sample)
        first = 1 if turns and turns[0][0] == "system" else 0
        if len(turns) > first and turns[first][0] == "assistant":
            del turns[first]
        return turns

    def arrange(
        self, sample: Sample, spoken: list[tuple[str, str]], pictures: Sequence[SourcePicture | None]
    ) -> tuple[Turn, ...]:
        if self.is_literal(sample):
            return tuple(Turn(role, (text,)) for role, text in spoken)
        self.count_places(sample, spoken, len(pictures))
        if self.image_first:
            spoken = [(role, self._picture_first(text)) for role, text in spoken]
        return self.place(spoken, pictures)

    def _picture_first(self, text: str) -> str:
        if text.count(self.placeholder) != 1:
            return text
        return f"{self.placeholder}\n{text.replace(self.placeholder, '').strip()}".strip()


class QwenVLConversations(Conversations):
    """Reads Qwen-VL's format: `from` is user or assistant, and the text names pictures as `<img>path</img>`.

    Other text stays: `Picture 1: ` and the marks of regions, which are `<ref>phrase</ref>` and
    `<box>(x1,y1),(x2,y2)</box>`, or `<quad>` with four points, in whole numbers from 0 to 999 across the picture.
    The tags `<img>` and `</img>` are removed, because the family's prompt writes its own.

    Source: arXiv:2308.12966, section 3.3; PICTURESME (fine-tuning) of the release.
    """

    format_name = text_format = "qwen_vl"
    placeholder = "<img>"
    remedy = "Write <img>path</img> into the text, or correct `format`"  # for pictures under a key

    def __init__(
        self,
        path: str,
        images: str | None = None,
        name: str | None = None,
        limit_pixels: int = LIMIT_PIXELS,
        limit_group: int = LIMIT_GROUP,
        places: str | None = None,
    ) -> None:
        super().__init__(path, images, name, limit_pixels, limit_group=limit_group, places=places)

    def blobs(self, sample: Sample) -> list[Blob]:
        blobs = super().blobs(sample)
        key = next((key for key in PICTURES if sample.entry.get(key)), None)
        if key is not None:
            raise sample.error(
                f"Qwen-VL's format has no `{key}`",
                "bad_entry",
                self.remedy,
            )
        return blobs

    def cells(self, sample: Sample) -> list[Any]:
        return [name.strip() for _, text in self.turns_of(sample) for name in IMG.findall(text)]

    def arrange(
        self, sample: Sample, spoken: list[tuple[str, str]], pictures: Sequence[SourcePicture | None]
    ) -> tuple[Turn, ...]:
        opened = sum(value.count("<img>") for _, value in spoken)
        closed = sum(value.count("</img>") for _, value in spoken)
        if not opened == closed == len(pictures):
            raise sample.error(
                f"its text opens {opened} x <img> and closes {closed}",
                "placeholder_mismatch",
                "Write <img>path</img> for each image",
            )
        self._check_tags(sample, spoken)
        for _, value in spoken:
            for text in BOX.findall(value):
                self._check_region(sample, "box", text, points=2)
            for text in QUAD.findall(value):
                self._check_region(sample, "quad", text, points=4)
        rest = iter(pictures)
        return tuple(Turn(role, self._parts(value, rest)) for role, value in spoken)

    @staticmethod
    def _parts(value: str, pictures: Iterator[SourcePicture]) -> tuple[str | SourcePicture, ...]:
        pieces = IMG.split(value)  # text and path by turns
        return tuple(next(pictures) if at % 2 else text for at, text in enumerate(pieces) if at % 2 or text)

    @staticmethod
    def _check_tags(sample: Sample, turns: Sequence[tuple[str, str]]) -> None:
        """Refuse marks of regions that are not in pairs.

        Raises:
            SampleError: <box>, <quad> or <ref> is opened twice, closed before it is opened, or never closed.
        """
        for number, (_, text) in enumerate(turns):
            opened = ""
            for slash, tag in [*REGION_TAG.findall(text), ("end", "")]:
                if (slash == "" and not opened) or (slash == "/" and opened == tag):
                    opened = "" if slash else tag
                    continue
                if slash == "end" and not opened:
                    continue
                raise sample.error(
                    f"turn {number} has a <{opened}> that is not closed"
                    if opened
                    else f"turn {number} closes a <{tag}> that is not open",
                    "bad_entry",
                    "Write <box>(x1,y1),(x2,y2)</box> for each region, and <ref> and <quad> alike",
                )

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
    """Reads XComposer's format: `from` is user or assistant, `<ImageHere>` stands for a picture that `image` names.

    A single picture needs no placeholder. `conversation_to_document` strips the text of every turn.
    """

    format_name = "xcomposer"
    placeholder = PLACEHOLDER

    def arrange(
        self, sample: Sample, spoken: list[tuple[str, str]], pictures: Sequence[SourcePicture | None]
    ) -> tuple[Turn, ...]:
        if self.is_literal(sample):
            return tuple(Turn(role, (text.strip(),)) for role, text in spoken)
        self.count_places(sample, spoken, len(pictures), free=1)
        conversation = [{"from": role, "value": text} for role, text in spoken]
        return conversation_to_document(conversation, pictures, id=sample.identity).turns
