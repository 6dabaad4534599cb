"""The images that an engine annotates: folders, tar shards, and every source that training reads."""

from __future__ import annotations

import hashlib
import io
import json
import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from lit_mm.annotation.description import Row
from lit_mm.documents.document import Document, Picture, Turn
from lit_mm.documents.files import FilePicture
from lit_mm.documents.sources import FORMATS, CaptionShards, Source, SourcePicture, open_source
from lit_mm.documents.sources.digest import digest_of
from lit_mm.documents.sources.sample import Sample
from lit_mm.errors import UserError

IMAGES = "images"  # format of a folder of image files, or of tar shards, whose texts are not read
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2")
LICENCES = ("licence", "license")  # keys of an entry
# Format of Pillow -> ending of the file in a shard. Other formats are written as PNG
ENDING_OF = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}


@dataclass(frozen=True)
class Entry:
    """A row before its pixels are read.

    Attributes:
        identity: id of the sample.
        where: file and place of the sample.
        licence: licence of the image, as its source says; "" for none.
        text: text of the source; "" without one.
        picture: the image.
    """

    identity: str
    where: str
    licence: str
    text: str
    picture: Picture

    def image_file(self) -> tuple[str, bytes]:
        """Return the ending of the image file and its bytes, as they are in the source; other formats become PNG."""
        if isinstance(self.picture, SourcePicture):
            content = self.picture.blob.read()
        else:
            content = Path(self.picture.path).read_bytes() if isinstance(self.picture, FilePicture) else b""
        if content:
            with Image.open(io.BytesIO(content)) as image:
                if image.format in ENDING_OF:
                    return ENDING_OF[image.format], content
        buffer = io.BytesIO()
        self.picture.read().save(buffer, format="PNG")
        return "png", buffer.getvalue()


class Rows(Protocol):
    """Rows of one source by number."""

    def __len__(self) -> int: ...

    def entry(self, number: int) -> Entry:
        """Read a row without its pixels.

        Raises:
            UserError: the row is broken.
        """
        ...

    def where(self, number: int) -> str:
        """Return the file and place of a row."""
        ...

    def content(self) -> Any:
        """Return a JSON value that is equal for equal rows."""
        ...


class ImageFolder:
    """The image files of a folder and its folders, sorted by path. Hidden files are left out.

    Args:
        path: path of the folder.
        licence: licence of all images; "" for none.
    Raises:
        UserError: there is no such folder, or it holds no image.
    """

    def __init__(self, path: str, licence: str = "") -> None:
        self.folder, self.licence = Path(os.path.expanduser(path)), licence
        if not self.folder.is_dir():
            raise UserError(f"there is no folder {path!r}. Correct the source's `path`")
        self.files = [
            file
            for file in sorted(self.folder.rglob("*"))
            if file.suffix.lower() in ENDINGS
            and not file.is_dir()
            and not any(piece.startswith(".") for piece in file.relative_to(self.folder).parts)
        ]
        if not self.files:
            raise UserError(f"the folder {path!r} holds no image; files end in {', '.join(ENDINGS)}")

    def __len__(self) -> int:
        return len(self.files)

    def entry(self, number: int) -> Entry:
        """See `Rows.entry`."""
        where = self.where(number)
        return Entry(where, where, self.licence, "", FilePicture.open(self.files[number]))

    def where(self, number: int) -> str:
        return self.files[number].relative_to(self.folder).as_posix()

    def content(self) -> Any:
        """Return the number of files and a digest of their names. A damaged image may be replaced in a run."""
        digest = hashlib.blake2b(digest_size=16)
        for number in range(len(self)):
            digest.update(f"{self.where(number)}\n".encode("utf-8", "surrogateescape"))
        return {"samples": len(self), "files": digest.hexdigest()}


class ImageShards(CaptionShards):
    """Tar shards with one image per key. Texts beside the images are not read."""

    def document(self, sample: Sample, sizes: Sequence[tuple[int, int]] | None = None) -> Document:
        blobs = self.blobs(sample)
        picture = self._picture(blobs[0], (0, 0) if sizes is None else sizes[0], sample)
        return Document(sample.identity, (Turn("page", (picture,)),), source=self.name)


class SourceRows:
    """The rows of a source of training data. Each has one image; its text is the last turn of the sample.

    Args:
        source: source of training data.
        licence: licence of the rows whose entries have none; "" for none.
    """

    def __init__(self, source: Source, licence: str = "") -> None:
        self.source, self.licence = source, licence

    def __len__(self) -> int:
        return len(self.source)

    def entry(self, number: int) -> Entry:
        """See `Rows.entry`."""
        sample = self.source.sample(number)
        document = self.source.document(sample, self.source.known_sizes(number))
        if len(document.pictures) != 1:
            raise sample.error(
                f"an engine annotates one image, this sample has {len(document.pictures)}", "bad_entry", "Leave it out"
            )
        last = document.turns[-1]
        text = last.text if last.role in ("assistant", "page") else ""
        return Entry(document.id, sample.where, licence_of(sample) or self.licence, text, document.pictures[0])

    def where(self, number: int) -> str:
        return self.source.where(number)

    def content(self) -> Any:
        return digest_of(self.source)


def licence_of(sample: Sample) -> str:
    """Return the licence in the entry of a sample, or in its .json in a shard; "" for none.

    Raises:
        SampleError: the .json cannot be read.
    """
    entry = sample.entry
    if not isinstance(entry, Mapping):
        return ""
    blob = entry.get("json")
    if blob is not None and not isinstance(blob, str | Mapping):
        try:
            entry = json.loads(blob.read().decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise sample.error(f"the .json is not JSON ({error})", "malformed_json", "Correct it") from error
    values = [entry.get(key) for key in LICENCES] if isinstance(entry, Mapping) else []
    return next((value for value in values if isinstance(value, str) and value), "")


@dataclass(frozen=True)
class Input:
    """A source of images.

    Attributes:
        name: name of the source in the output.
        path, images: files of the source, see `lit_mm.documents.sources`.
        format: "images" for a folder or tar shards of images alone, or a format of `lit_mm.documents.sources`.
        human: True if the texts are by human annotators, which CapFilt does not judge; not of "images".
        licence: licence of the images whose entries have none.
        text, caption, file, limit_pixels, places: arguments of the format's class; None for its default. Rows may name
            files outside of the folder of the images only below `places`.
    """

    name: str
    path: str
    format: str = IMAGES
    images: str | None = None
    human: bool = False
    licence: str = ""
    text: str | None = None
    caption: str | None = None
    file: str | None = None
    limit_pixels: int | None = None
    places: str | None = None

    def open(self) -> Rows:
        """Open the source.

        Raises:
            UserError: the format does not exist or refuses an argument, or the files cannot be read.
        """
        not_of_format = ("name", "format", "human", "licence")
        arguments = {
            key: value for key, value in asdict(self).items() if value is not None and key not in not_of_format
        }
        if self.format != IMAGES:
            if self.format not in FORMATS:
                raise UserError(
                    f"source {self.name!r}: there is no format {self.format!r}. It is {IMAGES}, {', '.join(FORMATS)}"
                )
            return SourceRows(open_source({**arguments, "format": self.format, "name": self.name}), self.licence)
        limit = {} if self.limit_pixels is None else {"limit_pixels": self.limit_pixels}
        if self.human:
            raise UserError(
                f"source {self.name!r}: `human` needs texts, but the format {IMAGES} has none. Name a `format` "
                f"with texts, one of {', '.join(FORMATS)}"
            )
        if extra := sorted(arguments.keys() - {"path", "limit_pixels"}):
            raise UserError(f"source {self.name!r}: the format {IMAGES} takes only `path`, got {extra}")
        if self.path.lower().endswith(".tar"):
            return SourceRows(ImageShards(self.path, name=self.name, **limit), self.licence)
        return ImageFolder(self.path, self.licence)


class Inputs:
    """The rows of several sources, one source after the other.

    Args:
        inputs: sources with different names.
    Raises:
        UserError: there is no source, or two have one name.
    """

    def __init__(self, inputs: Sequence[Input]) -> None:
        names = [entry.name for entry in inputs]
        if not names or len(set(names)) < len(names):
            raise UserError(f"an engine needs `sources` with different names, got {names}")
        self.inputs = list(inputs)
        self.rows = [entry.open() for entry in inputs]
        self.stops = list(accumulate(len(rows) for rows in self.rows))

    def __len__(self) -> int:
        return self.stops[-1]

    def place(self, number: int) -> tuple[int, int]:
        """Return the number of a row's source, and the row's number there."""
        source = bisect_right(self.stops, number)
        return source, number - (self.stops[source - 1] if source else 0)

    def entry(self, number: int) -> Entry:
        """Read a row without its pixels; see `Rows.entry`."""
        source, position = self.place(number)
        return self.rows[source].entry(position)

    def row(self, number: int, entry: Entry) -> Row:
        """Decode the image of a row.

        Raises:
            UserError: the image is damaged.
        """
        source, position = self.place(number)
        declared = self.inputs[source]
        image = entry.picture.read().convert("RGB")
        return Row(number, declared.name, position, entry.identity, image, entry.text, declared.human)

    def source_of(self, number: int) -> str:
        """Return the name of a row's source."""
        return self.inputs[self.place(number)[0]].name

    def where(self, number: int) -> str:
        """Return file and place of a row."""
        source, position = self.place(number)
        return self.rows[source].where(position)

    def content(self) -> list[Any]:
        """Return the declarations of the sources with the digests of their files."""
        return [asdict(entry) | {"content": rows.content()} for entry, rows in zip(self.inputs, self.rows, strict=True)]
