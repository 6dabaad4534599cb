"""Interleaved pages of OBELICS and MMC4, in parquet or as one JSON object per line.

Some pages lack a picture whose download has failed. With `gaps: drop` they are pages with fewer pictures; otherwise
they are bad samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

from lit_mm.documents.document import Turn
from lit_mm.documents.printable import brief
from lit_mm.documents.sources.blobs import Blob
from lit_mm.documents.sources.cells import is_gap
from lit_mm.documents.sources.entries import open_entries
from lit_mm.documents.sources.errors import SampleError
from lit_mm.documents.sources.forms import format_of
from lit_mm.documents.sources.parquet import LIMIT_GROUP
from lit_mm.documents.sources.part import Part
from lit_mm.documents.sources.picture import LIMIT_PIXELS, SourcePicture
from lit_mm.documents.sources.sample import Sample
from lit_mm.documents.sources.source import GAP, Source
from lit_mm.errors import UserError

Gaps = Literal["refuse", "drop"]
LEAVE_OUT = "`gaps: drop` leaves out pictures that are missing"


class _Pages(Source):
    """The common base of both formats.

    Raises:
        UserError: `gaps` is neither refuse nor drop.
    """

    expected = "page"
    columns: tuple[str, ...]

    def __init__(
        self,
        path: str,
        images: str | None,
        name: str | None,
        limit_pixels: int,
        limit_group: int,
        gaps: Gaps,
        places: str | None,
    ) -> None:
        if gaps not in ("refuse", "drop"):
            raise UserError(f"`gaps` is 'refuse' or 'drop', got {gaps!r}")
        self.limit_group, self.gaps = limit_group, gaps
        self.skips_gaps = gaps == "drop"
        super().__init__(path, images, name, limit_pixels, places)

    def open_part(self, path: str) -> Part:
        return open_entries(path, self.expected, self.columns, self.limit_group)

    def options(self) -> tuple[Any, ...]:
        return (self.gaps,)

    def _picture(self, blob: Blob, size: tuple[int, int], sample: Sample) -> SourcePicture | None:
        try:
            return super()._picture(blob, size, sample)
        except SampleError as error:
            if error.kind != "missing_file":
                raise
            raise sample.error(error.reason, "missing_file", f"{LEAVE_OUT}. {error.remedy}") from error


class ObelicsPages(_Pages):
    """Reads OBELICS: lists `texts` and `images` of the same length. Each place has a text or an image, and one None.

    An image is a path, a URL, bytes, or `{"bytes": ..., "path": ...}`. Texts stay as they are. Neighbouring texts are
    paragraphs and are joined by a blank line.

    A parquet is read by row group. If it holds the pictures, it should have small groups of about a hundred rows.

    Args:
        path, images, name, limit_pixels, places: see `Source`.
        limit_group: of a parquet, the most bytes of a row group, see `ParquetRows`.
        gaps: policy for a page with a missing picture (its file is missing, or a place has neither text nor image):
            "refuse" makes the page a bad sample, "drop" leaves the picture out.
    Source: arXiv:2306.16527, section 3 and the released data set's card.
    """

    columns = ("texts", "images")

    def __init__(
        self,
        path: str,
        images: str | None = None,
        name: str | None = None,
        limit_pixels: int = LIMIT_PIXELS,
        limit_group: int = LIMIT_GROUP,
        gaps: Gaps = "refuse",
        places: str | None = None,
    ) -> None:
        super().__init__(path, images, name, limit_pixels, limit_group, gaps, places)

    def blobs(self, sample: Sample) -> list[Blob]:
        return [
            self.blob(image, sample, f"images[{at}]")
            for at, (_, image) in enumerate(self._places(sample))
            if image is not None
        ]

    def turns(self, sample: Sample, pictures: Sequence[SourcePicture | None]) -> tuple[Turn, ...]:
        rest = iter(pictures)
        parts: list[str | SourcePicture] = []
        for text, image in self._places(sample):
            if image is not None:
                if (picture := next(rest)) is not None:
                    parts.append(picture)
            elif text and parts and isinstance(parts[-1], str):
                parts[-1] += f"\n\n{text}"
            elif text:
                parts.append(text)
        return (Turn("page", tuple(parts)),)

    def _places(self, sample: Sample) -> list[tuple[str | None, Any]]:
        """Return (text, image) of every place. One of them is None, and both are None in a gap."""
        described = "a page has two lists, `texts` and `images`"
        texts, images = sample.field("texts", list, described), sample.field("images", list, described)
        if any(isinstance(text, Mapping) for text in texts):
            raise sample.error(
                f"`texts` holds objects, got {brief(texts)}", "bad_entry", f"Is its `format` {format_of(sample.entry)}?"
            )
        if len(texts) != len(images):
            raise sample.error(
                f"{len(texts)} `texts` and {len(images)} `images`: they alternate, with None in the other list",
                "placeholder_mismatch",
            )
        places: list[tuple[str | None, Any]] = []
        for at, (text, image) in enumerate(zip(texts, images, strict=True)):
            if text is None and is_gap(image) and self.skips_gaps:
                sample.notes.add(GAP)
                places.append((None, None))
                continue
            if (text is None) == (image is None):
                content = "neither" if text is None else "both"
                raise sample.error(
                    f"place {at} holds {content} of text and image",
                    "placeholder_mismatch",
                    f"Each place holds one; {LEAVE_OUT}",
                )
            if text is not None and not isinstance(text, str):
                raise sample.error(f"place {at} of `texts` is no text, got {brief(text)}", "bad_entry")
            places.append((text, image))
        return places


class Mmc4Pages(_Pages):
    """Reads MMC4: `text_list`, and `image_info`, whose `matched_text_index` is the sentence that follows the image.

    `image_name` or `path` names an image, or `bytes` or `image_base64` holds it. Sentences are joined by single spaces,
    and an image stands directly before its sentence. Images of one sentence keep their order.

    Args:
        path, images, name, limit_pixels, places: see `Source`.
        max_images: largest number of images of a page, the first ones in `image_info`; None for no limit.
        limit_group: of a parquet, the most bytes of a row group, see `ParquetRows`.
        gaps: policy for a page whose image file is missing, see `ObelicsPages`.
    Source: arXiv:2304.06939; the places of images follow VILA, llava/data/dataset.py, which has `max_images` 6 and
        breaks ties at random, because numpy's argsort is not stable.
    """

    columns = ("text_list", "image_info")

    def __init__(
        self,
        path: str,
        images: str | None = None,
        name: str | None = None,
        max_images: int | None = None,
        limit_pixels: int = LIMIT_PIXELS,
        limit_group: int = LIMIT_GROUP,
        gaps: Gaps = "refuse",
        places: str | None = None,
    ) -> None:
        if max_images is not None and max_images < 1:
            raise UserError(f"`max_images` is at least 1, got {max_images}")
        self.max_images = max_images
        super().__init__(path, images, name, limit_pixels, limit_group, gaps, places)

    def options(self) -> tuple[Any, ...]:
        return self.max_images, self.gaps

    def blobs(self, sample: Sample) -> list[Blob]:
        images = self._in_order(sample)
        gap = next((at for at, image in images if is_gap(image)), None)
        if gap is not None:
            raise sample.error(f"image_info[{gap}] names no picture", "bad_entry", LEAVE_OUT)
        return [self.blob(image, sample, f"image_info[{at}]") for at, image in images]

    def turns(self, sample: Sample, pictures: Sequence[SourcePicture | None]) -> tuple[Turn, ...]:
        sentences = self._sentences(sample)
        before: dict[int, list[SourcePicture]] = {}
        for (_, image), picture in zip(self._in_order(sample), pictures, strict=True):
            if picture is not None:
                before.setdefault(image["matched_text_index"], []).append(picture)
        parts: list[str | SourcePicture] = []
        starts = sorted({0, *before, len(sentences)})
        for start, stop in pairwise(starts):
            parts += before.get(start, [])
            parts.append(" ".join(sentences[start:stop]) + (" " if stop < len(sentences) else ""))
        return (Turn("page", tuple(part for part in parts if part != "")),)

    def _in_order(self, sample: Sample) -> list[tuple[int, Mapping[str, Any]]]:
        """Return (place in `image_info`, image) in reading order."""
        count = len(self._sentences(sample))
        infos = sample.field("image_info", list, "a page has a list `image_info`")[: self.max_images]
        for at, info in enumerate(infos):
            matched = info.get("matched_text_index") if isinstance(info, Mapping) else None
            if not isinstance(matched, int) or isinstance(matched, bool):
                raise sample.error(f"image_info[{at}] has no number `matched_text_index`", "bad_entry")
            if not 0 <= matched < count:
                raise sample.error(
                    f"image_info[{at}] stands before sentence {matched}, the page has {count}", "placeholder_mismatch"
                )
        if self.skips_gaps and any(is_gap(info) for info in infos):
            sample.notes.add(GAP)
        pictured = [(at, info) for at, info in enumerate(infos) if not (self.skips_gaps and is_gap(info))]
        return sorted(pictured, key=lambda numbered: numbered[1]["matched_text_index"])

    @staticmethod
    def _sentences(sample: Sample) -> list[str]:
        sentences = sample.field("text_list", list, "a page has a list `text_list`")
        if not all(isinstance(sentence, str) for sentence in sentences):
            raise sample.error("`text_list` is a list of texts", "bad_entry")
        return sentences
