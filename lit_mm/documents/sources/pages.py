"""Interleaved pages: OBELICS and MMC4, in parquet or as one JSON object a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from lit_mm.documents.document import Turn
from lit_mm.documents.sources.parts import LIMIT_GROUP, Part, open_entries
from lit_mm.documents.sources.source import LIMIT_PIXELS, Sample, Source, SourcePicture
from lit_mm.documents.sources.storage import Blob, BytesBlob
from lit_mm.errors import UserError


class ObelicsPages(Source):
    """OBELICS: the lists `texts` and `images` of one length, in each place a text or an image, None in the other list.

    An image is a path, a URL, bytes, or `{"bytes": ..., "path": ...}`. Texts stay as they are; two that follow each
    other are joined by a blank line, as they are paragraphs.

    A parquet is read by row group: pages with their pictures inside need small groups, a hundred rows or so.

    Args:
        path, images, name, limit_pixels: see `Source`.
        limit_group: of a parquet, the most bytes of a row group, see `ParquetRows`.
    Source: arXiv:2306.16527, section 3 and the released data set's card.
    """

    expected = "page"

    def __init__(
        self,
        path: str,
        images: str | None = None,
        name: str | None = None,
        limit_pixels: int = LIMIT_PIXELS,
        limit_group: int = LIMIT_GROUP,
    ) -> None:
        self.limit_group = limit_group
        super().__init__(path, images, name, limit_pixels)

    def open_part(self, path: str) -> Part:
        return open_entries(path, self.expected, ("texts", "images"), self.limit_group)

    def blobs(self, sample: Sample) -> list[Blob]:
        return [
            stored(self, image, f"images[{at}]", sample)
            for at, (_, image) in enumerate(self._places(sample))
            if image is not None
        ]

    def turns(self, sample: Sample, pictures: Sequence[SourcePicture]) -> tuple[Turn, ...]:
        left = iter(pictures)
        parts: list[str | SourcePicture] = []
        for text, image in self._places(sample):
            if image is not None:
                parts.append(next(left))
            elif text and parts and isinstance(parts[-1], str):
                parts[-1] += f"\n\n{text}"
            elif text:
                parts.append(text)
        return (Turn("page", tuple(parts)),)

    @staticmethod
    def _places(sample: Sample) -> list[tuple[str | None, Any]]:
        """(text, image) of every place, one of them None."""
        described = "a page has two lists, `texts` and `images`"
        texts, images = sample.field("texts", list, described), sample.field("images", list, described)
        if len(texts) != len(images):
            raise sample.error(
                f"{len(texts)} `texts` and {len(images)} `images`: they alternate, with None in the other list",
                "placeholder_mismatch",
            )
        for at, (text, image) in enumerate(zip(texts, images, strict=True)):
            if (text is None) == (image is None):
                content = "neither" if text is None else "both"
                raise sample.error(
                    f"place {at} holds {content} of text and image", "placeholder_mismatch", "Each place holds one"
                )
            if text is not None and not isinstance(text, str):
                raise sample.error(f"place {at} of `texts` is no text, got {str(text)[:60]!r}", "bad_entry")
        return list(zip(texts, images, strict=True))


class Mmc4Pages(Source):
    """MMC4: `text_list`, and `image_info` whose `matched_text_index` says before which sentence an image stands.

    An image is named by `image_name` (or `path`), or its bytes are in `bytes`. Sentences are joined by single spaces;
    an image stands directly before its sentence. Images of one sentence keep their order.

    Args:
        path, images, name, limit_pixels: see `Source`.
        max_images: only the first so many of a page are used, in the order of `image_info`; all when left out.
        limit_group: of a parquet, the most bytes of a row group, see `ParquetRows`.
    Source: arXiv:2304.06939; the placing is that of VILA, llava/data/dataset.py (`max_images` 6 there; ties are broken
        at random there, because numpy's argsort is not stable).
    """

    expected = "page"

    def __init__(
        self,
        path: str,
        images: str | None = None,
        name: str | None = None,
        max_images: int | None = None,
        limit_pixels: int = LIMIT_PIXELS,
        limit_group: int = LIMIT_GROUP,
    ) -> None:
        if max_images is not None and max_images < 1:
            raise UserError(f"`max_images` is at least 1, got {max_images}")
        self.max_images, self.limit_group = max_images, limit_group
        super().__init__(path, images, name, limit_pixels)

    def options(self) -> tuple[Any, ...]:
        return (self.max_images,)

    def open_part(self, path: str) -> Part:
        return open_entries(path, self.expected, ("text_list", "image_info"), self.limit_group)

    def blobs(self, sample: Sample) -> list[Blob]:
        return [stored(self, image, f"image_info[{at}]", sample) for at, image in self._in_order(sample)]

    def turns(self, sample: Sample, pictures: Sequence[SourcePicture]) -> tuple[Turn, ...]:
        sentences = self._sentences(sample)
        before: dict[int, list[SourcePicture]] = {}
        for (_, image), picture in zip(self._in_order(sample), pictures, strict=True):
            before.setdefault(image["matched_text_index"], []).append(picture)
        parts: list[str | SourcePicture] = []
        starts = sorted({0, *before, len(sentences)})
        for start, stop in pairwise(starts):
            parts += before.get(start, [])
            parts.append(" ".join(sentences[start:stop]) + (" " if stop < len(sentences) else ""))
        return (Turn("page", tuple(part for part in parts if part != "")),)

    def _in_order(self, sample: Sample) -> list[tuple[int, Mapping[str, Any]]]:
        """(place in `image_info`, image) in reading order."""
        count = len(self._sentences(sample))
        infos = sample.field("image_info", list, "a page has a list `image_info`")[: self.max_images]
        for at, info in enumerate(infos):
            matched = info.get("matched_text_index") if isinstance(info, Mapping) else None
            if not isinstance(matched, int):
                raise sample.error(f"image_info[{at}] has no number `matched_text_index`", "bad_entry")
            if not 0 <= matched < count:
                raise sample.error(
                    f"image_info[{at}] stands before sentence {matched}, the page has {count}", "placeholder_mismatch"
                )
        return sorted(enumerate(infos), key=lambda numbered: numbered[1]["matched_text_index"])

    @staticmethod
    def _sentences(sample: Sample) -> list[str]:
        sentences = sample.field("text_list", list, "a page has a list `text_list`")
        if not all(isinstance(sentence, str) for sentence in sentences):
            raise sample.error("`text_list` is a list of texts", "bad_entry")
        return sentences


def stored(source: Source, cell: Any, label: str, sample: Sample) -> Blob:
    """The picture that a cell holds or names: bytes, a path or URL, or an object with one of both.

    Raises:
        SampleError: it is none of these.
    """
    if isinstance(cell, Mapping):
        cell = next((cell[key] for key in ("bytes", "image_name", "path") if cell.get(key)), None)
    if isinstance(cell, bytes):
        return BytesBlob(cell, sample.path, f"{sample.where.rpartition(':')[2]}, {label}")
    if isinstance(cell, str) and cell:
        return source.blob(cell, sample)
    raise sample.error(f"{label} holds neither bytes nor a path, got {str(cell)[:60]!r}", "bad_entry")
