"""The base of all sources: from entries to documents, with picture sizes from an index or from the files' headers."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from lit_mm.documents.document import Document, Turn
from lit_mm.documents.sources import cache
from lit_mm.documents.sources.blobs import Blob, BytesBlob, FileBlob
from lit_mm.documents.sources.boundary import Boundary
from lit_mm.documents.sources.cells import blob_of
from lit_mm.documents.sources.errors import SampleError
from lit_mm.documents.sources.part import Part
from lit_mm.documents.sources.paths import expand, expand_home, folder_of, is_url, name_of
from lit_mm.documents.sources.picture import LIMIT_PIXELS, SourcePicture, read_size
from lit_mm.documents.sources.sample import Sample
from lit_mm.errors import UserError

CHUNK = 2048  # samples per chunk of the picture index
UNNAMED = "missing_id"  # note of a sample without the `id` of its format
GAP = "missing_picture"  # note of a sample that has fewer pictures than its entry names
OVERLAP = "held_out"  # note of a training sample that is among the held-out ones
UNKNOWN = (0, 0)  # in the picture index: the header could not be read


class Source(ABC):
    """Returns documents by number, with the sizes of their pictures and without pixels.

    Args:
        path: data file, local or at a URL. `shard-{00000..00127}.tar` names several files in order, `train-*.parquet`
            all matching files.
        images: folder or URL that relative picture names start from; None for the folder of the data file.
        name: name of the data set in errors, ledgers and tables; None for the file's name without its ending.
        limit_pixels: largest number of pixels of a picture; a larger picture makes a bad sample.
        places: what rows may name outside of `images`: folders, beginnings of URLs and schemes of URLs, with commas
            between them, such as `/data/coco, https`; None for nothing. See `lit_mm.documents.sources.boundary`.
    Raises:
        UserError: a data file is missing, empty, or not of this format.
    """

    expected = "entry"  # word for a sample in messages
    has_ids = False  # entries of the format have an `id`
    text_format = ""  # see `Document.text_format`
    skips_gaps = False  # a picture whose file is missing is left out of its sample

    def __init__(
        self,
        path: str,
        images: str | None = None,
        name: str | None = None,
        limit_pixels: int = LIMIT_PIXELS,
        places: str | None = None,
    ) -> None:
        if limit_pixels < 1:
            raise UserError(f"`limit_pixels` is at least 1, got {limit_pixels}")
        self.places, self.boundary = places, Boundary.of(places)
        paths = expand(path)
        self.parts: list[Part] = [self.open_part(path) for path in paths]
        self.images = None if images is None else expand_home(images)
        self.name = name or name_of(paths[0]).partition(".")[0]
        self.limit_pixels = limit_pixels
        self.stops = list(accumulate(len(part) for part in self.parts))
        self._index = cache.load(self._key)

    # --- methods of a format -----------------------------------------------------------------------------------------
    @abstractmethod
    def open_part(self, path: str) -> Part:
        """Open one data file."""

    @abstractmethod
    def blobs(self, sample: Sample) -> list[Blob]:
        """Return the places of the sample's pictures, in reading order.

        Raises:
            SampleError: the entry is not of this format.
        """

    @abstractmethod
    def turns(self, sample: Sample, pictures: Sequence[SourcePicture | None]) -> tuple[Turn, ...]:
        """Return the turns of the sample with the pictures in their places.

        Args:
            pictures: picture of every blob; None for a gap, which only a source with `skips_gaps` has.
        Raises:
            SampleError: the entry is not of this format, or text and pictures do not fit.
        """

    def identity(self, sample: Sample) -> str | None:
        """Return the id of the sample; None if it has none."""
        value = sample.entry.get("id") if isinstance(sample.entry, Mapping) else None
        return None if value is None else str(value)

    # --- documents ---------------------------------------------------------------------------------------------------
    def __len__(self) -> int:
        return self.stops[-1]

    def __getitem__(self, number: int) -> Document:
        """Return a document. Its entry is parsed, and headers are read unless the picture index has their sizes.

        Raises:
            SampleError: the sample is broken.
            IndexError: the number is out of range.
        """
        sample = self.sample(number)
        return self.document(sample, self.known_sizes(number))

    def sample(self, number: int) -> Sample:
        """Parse the entry of a sample.

        Raises:
            SampleError: the entry cannot be parsed.
            IndexError: the number is out of range.
        """
        part, inside = self._part_of(number)
        sample = Sample(part.entry(inside), part.where(inside), part.path)
        identity = self.identity(sample) or sample.where
        sample.identity = identity.encode("utf-8", "backslashreplace").decode()  # an id is printed and logged
        return sample

    def where(self, number: int) -> str:
        """Return file and place of a sample."""
        part, inside = self._part_of(number)
        return part.where(inside)

    def _part_of(self, number: int) -> tuple[Part, int]:
        """Return the data file of a sample, and the sample's number there."""
        if not 0 <= number < len(self):
            raise IndexError(f"{self.name} has {len(self)} samples, there is no number {number}")
        at = bisect_right(self.stops, number)
        return self.parts[at], number - (self.stops[at - 1] if at else 0)

    def document(self, sample: Sample, sizes: Sequence[tuple[int, int]] | None = None) -> Document:
        """Build the document of a sample.

        Args:
            sizes: (height, width) of the pictures; None reads them from the files' headers.
        Raises:
            SampleError: the sample is broken.
        """
        blobs = sample.once("blobs", lambda: self.blobs(sample))
        if sizes is None or len(sizes) != len(blobs):
            sizes = [UNKNOWN] * len(blobs)
        turns = self.turns(sample, [self._picture(*pair, sample) for pair in zip(blobs, sizes, strict=True)])
        for number, turn in enumerate(turns):
            _check_text(turn.text, number, sample)
        if not any(turn.role in ("assistant", "page") and turn.text.strip() for turn in turns):
            raise sample.error("nothing in it can be learnt", "no_supervision", "Add an answer, or leave it out")
        return Document(sample.identity, turns, source=self.name, text_format=self.text_format)

    def blob(self, cell: Any, sample: Sample, label: str = "image") -> Blob:
        """Return the place of the picture that a cell of an entry names or holds.

        Args:
            cell: a path or a URL, bytes, a data URI, base64, or an object with one of them.
            label: name of the cell in errors.
        Raises:
            SampleError: the cell is none of these.
        """
        folder = self.images if self.images is not None else folder_of(sample.path)
        return blob_of(cell, sample, folder, self.boundary, label)

    def _picture(self, blob: Blob, size: tuple[int, int], sample: Sample) -> SourcePicture | None:
        """Return the picture of a blob; None for a gap."""
        if size == UNKNOWN:
            try:
                size = read_size(blob, sample, self.limit_pixels)
            except SampleError as error:
                if self.skips_gaps and error.kind == "missing_file":
                    sample.notes.add(GAP)
                    return None
                raise
        return SourcePicture(blob, *size, sample.where, sample.identity, self.limit_pixels)

    # --- the picture index -------------------------------------------------------------------------------------------
    @property
    def _key(self) -> str:
        return cache.key_of("pictures", type(self).__name__, *self.options(), *self._files())

    def _files(self) -> tuple[list[str], list[str]]:
        """Return digests of the data files, and the folder of the pictures."""
        folders = [self._absolute(self.images if self.images is not None else folder_of(p.path)) for p in self.parts]
        return [part.digest for part in self.parts], sorted(set(folders))

    @property
    def content(self) -> tuple[Any, ...]:
        """Everything that decides the documents: format, arguments, and digests of the files."""
        plain = {k: v for k, v in vars(self).items() if v is None or isinstance(v, str | int | float | bool)}
        return type(self).__name__, sorted(plain.items()), *self._files()

    @staticmethod
    def _absolute(folder: str) -> str:
        return folder if is_url(folder) else str(Path(folder).absolute())

    def options(self) -> tuple[Any, ...]:
        """Return further arguments that decide which pictures a sample has."""
        return ()

    @property
    def indexed(self) -> bool:
        return self._index is not None

    def known_sizes(self, number: int) -> list[tuple[int, int]] | None:
        """Return (height, width) of a sample's pictures from the index; None without an index."""
        if self._index is None:
            return None
        first, stop = (int(n) for n in self._index["firsts"][number : number + 2])
        return [(int(height), int(width)) for height, width in self._index["sizes"][first:stop]]

    def build_index(self, progress: Callable[[int], None] = lambda samples: None) -> tuple[int, int]:
        """Read every picture's header once and store the sizes. After an interruption the same call continues.

        A broken sample or picture is stored as unknown; training reads it again and reports it.

        Args:
            progress: function that is called with the number of finished samples, earlier attempts included.
        Returns:
            The number of pictures, and the number of unknown ones.
        Raises:
            UserError: the cache folder cannot be written.
        """
        if self._index is None:
            self._index = self._make_index(progress)
        progress(len(self))
        sizes = self._index["sizes"]
        return len(sizes), int((sizes[:, 0] == 0).sum())

    def _make_index(self, progress: Callable[[int], None]) -> dict[str, np.ndarray]:
        def make(chunk: int) -> np.ndarray:
            """Return [1 + count + 2 * pictures]: number of samples, pictures of each, then heights and widths."""
            start = chunk * CHUNK
            numbers = range(start, min(start + CHUNK, len(self)))
            counts, sizes = [], []
            for number in numbers:
                sample_sizes = self._sizes(number)
                counts.append(len(sample_sizes))
                sizes += sample_sizes
                progress(number + 1)
            return np.array([len(counts), *counts, *(side for size in sizes for side in size)], dtype=np.int64)

        chunks = cache.resume(self._key, -(-len(self) // CHUNK), make)
        counts = np.concatenate([chunk[1 : 1 + chunk[0]] for chunk in chunks])
        sizes = np.concatenate([chunk[1 + chunk[0] :].reshape(-1, 2) for chunk in chunks])
        return cache.finish(
            self._key, {"firsts": np.concatenate([[0], np.cumsum(counts)]), "sizes": sizes.astype(np.int32)}
        )

    def forget_index(self) -> None:
        """Remove the picture index, so that `build_index` reads all headers again."""
        cache.forget(self._key)
        self._index = None

    def _sizes(self, number: int) -> list[tuple[int, int]]:
        try:
            sample = self.sample(number)
            blobs = self.blobs(sample)
        except SampleError:
            return []
        sizes = []
        for blob in blobs:
            try:
                sizes.append(read_size(blob, sample, self.limit_pixels))
            except SampleError:
                sizes.append(UNKNOWN)
        return sizes

    # --- checking ----------------------------------------------------------------------------------------------------
    def check(
        self, number: int, notes: Counter[str] | None = None, held_out: Set[int] = frozenset()
    ) -> tuple[str | None, int, list[SampleError]]:
        """Check a sample without decoding pixels. The headers of its pictures are read from the files.

        Args:
            notes: counter by note, see `lit_mm.documents.sources.check.NOTES`.
            held_out: `content_hash` of the held-out documents; a sample with one of these gets a note.
        Returns:
            The id of the sample (None without one), its number of pictures, and its errors.
        """
        try:
            sample = self.sample(number)
        except SampleError as error:
            return None, 0, [error]
        identity = self.identity(sample)
        errors = []
        if identity is None and self.has_ids:
            sample.notes.add(UNNAMED)
        try:
            blobs = sample.once("blobs", lambda: self.blobs(sample))
        except SampleError as error:
            return identity, 0, [*errors, error]
        sizes = []
        for blob in blobs:
            try:
                picture = self._picture(blob, UNKNOWN, sample)
                sizes.append(UNKNOWN if picture is None else (picture.height, picture.width))
            except SampleError as error:
                errors.append(error)
                sizes.append((1, 1))  # its error is in the list already; below only the text is checked
        try:
            document = self.document(sample, sizes)
            if held_out and content_hash(document) in held_out:
                sample.notes.add(OVERLAP)
        except SampleError as error:
            errors.append(error)
        if notes is not None:
            notes.update(sample.notes)
        return identity, len(blobs), errors


def content_hash(document: Document) -> int:
    """Compute a hash of roles, texts and pictures, equal for equal documents of two files within one process.

    Pictures are equal if they have the same path, the same place in one tar, or the same bytes inside of the data.
    """
    turns = [
        (turn.role, *(_place(part.blob) if isinstance(part, SourcePicture) else part for part in turn.parts))
        for turn in document.turns
    ]
    return hash(tuple(turns))


def _place(blob: Blob) -> Any:
    """Return a value that is equal for equal pictures."""
    if isinstance(blob, BytesBlob):
        return blob.data
    return blob if is_url(blob.path) or not isinstance(blob, FileBlob) else os.path.abspath(blob.path)


def _check_text(text: str, number: int, sample: Sample) -> None:
    """Refuse a text with a lone surrogate.

    Raises:
        SampleError: the text holds half a character, which no tokenizer can read.
    """
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise sample.error(
            f"the text of turn {number} holds the lone surrogate {text[error.start]!r} at character {error.start + 1}, "
            "which is half of a character",
            "malformed_text",
            "Remove it, or write the whole character",
        ) from error
