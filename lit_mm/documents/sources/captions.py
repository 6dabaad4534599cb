"""Caption pairs in WebDataset tar shards. Members are read in place by their offsets."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Literal

from lit_mm.documents.document import Turn
from lit_mm.documents.printable import brief
from lit_mm.documents.sources.blobs import Blob, SpanBlob
from lit_mm.documents.sources.entries import is_data_file
from lit_mm.documents.sources.forms import format_of
from lit_mm.documents.sources.part import Part
from lit_mm.documents.sources.paths import is_url, join
from lit_mm.documents.sources.picture import LIMIT_PIXELS, SourcePicture
from lit_mm.documents.sources.sample import Sample
from lit_mm.documents.sources.source import Source
from lit_mm.documents.sources.tar import TarPart
from lit_mm.errors import UserError

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2")  # endings


class CaptionShards(Source):
    """Shards of `key.jpg` with `key.txt` or `key.json`. A document is one page: the picture, then its caption.

    If a key has both a .txt and a .json (img2dataset writes both), `text` names the one that is read. A byte order
    mark, carriage returns and the line ends behind a .txt are not part of the caption.

    Args:
        path: path of the shards, such as `captions-{00000..00127}.tar`.
        text: ending of the file that holds the caption.
        caption: key of the caption in a json.
        name, limit_pixels: see `Source`.
    """

    expected = "sample"

    def __init__(
        self,
        path: str,
        text: Literal["txt", "json"] = "txt",
        caption: str = "caption",
        name: str | None = None,
        limit_pixels: int = LIMIT_PIXELS,
    ) -> None:
        if text not in ("txt", "json"):
            raise UserError(f"`text` is 'txt' or 'json', got {text!r}")
        self.text, self.caption = text, caption
        super().__init__(path, None, name, limit_pixels)

    def open_part(self, path: str) -> Part:
        if is_data_file(path):
            raise UserError(f"{path!r} is a table, not a tar file. For rows of image and caption, use `format: folder`")
        if not is_url(path) and os.path.isdir(path):
            raise UserError(
                f"{path!r} is a folder, but `path` names shards: write `path: {join(path, '*.tar')}`. For a folder of "
                "pictures with a list of captions, use `format: folder`"
            )
        return TarPart(path, self.expected)

    def identity(self, sample: Sample) -> str | None:
        return sample.where.partition(":")[2]

    def blobs(self, sample: Sample) -> list[Blob]:
        pictures = [blob for ending, blob in sample.entry.items() if ending.rpartition(".")[2] in PICTURES]
        if len(pictures) != 1:
            raise sample.error(
                f"a pair has one image file, got {len(pictures)} among {sorted(sample.entry)}",
                "bad_entry" if pictures else "missing_file",
                self._advice(sample) or f"Endings of images are {', '.join(PICTURES)}",
            )
        return pictures

    def turns(self, sample: Sample, pictures: Sequence[SourcePicture]) -> tuple[Turn, ...]:
        blob = sample.entry.get(self.text)
        if blob is None:
            raise sample.error(
                f"there is no .{self.text} beside the image, only {sorted(sample.entry)}",
                "missing_file",
                self._advice(sample) or self._other_text(sample),
            )
        caption = self._caption(blob, sample)
        if not caption.strip():
            raise sample.error("the caption is empty", "empty_answer", "Write it, or leave the sample out")
        return (Turn("page", (*pictures, caption)),)

    def _advice(self, sample: Sample) -> str:
        """Return a possible reason for missing members of the sample; "" if there is no sign of one."""
        part = next(part for part in self.parts if part.path == sample.path)
        return part.advice(sample.entry)

    def _other_text(self, sample: Sample) -> str:
        """Return the advice for a sample without the declared text."""
        other = "json" if self.text == "txt" else "txt"
        if other not in sample.entry:
            return f"Add it, or rename the file that holds the caption to .{self.text}"
        key = f" under its key {self.caption!r} (`caption`)" if other == "json" else ""
        return f"`text: {other}` reads the caption from the .{other}{key}"

    def _caption(self, blob: SpanBlob, sample: Sample) -> str:
        try:
            text = blob.read().decode("utf-8-sig")
            content = json.loads(text) if self.text == "json" else text.replace("\r\n", "\n").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise sample.error(f"the .{self.text} is not UTF-8 at byte {error.start}", "malformed_json") from error
        except (ValueError, RecursionError) as error:
            raise sample.error(f"the .json is not JSON ({error})", "malformed_json", "Correct it") from error
        if self.text == "txt":
            return content
        caption = content.get(self.caption) if isinstance(content, Mapping) else None
        if isinstance(caption, list) and len(caption) == 1:
            caption = caption[0]
        if not isinstance(caption, str):
            guess = format_of(content)
            if isinstance(caption, list):
                advice = "Write one caption for each picture"
            elif guess is None:
                advice = "Correct `caption`"
            else:
                advice = f"It looks like {guess}, which is read from a file of entries beside a folder of images"
            raise sample.error(
                f"the .json has no text under {self.caption!r}, got {brief(content)}", "bad_entry", advice
            )
        return caption
