"""What all sources share: from entries to documents, with picture sizes from an index or from the files' headers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from lit_mm.documents.document import Document, Turn
from lit_mm.documents.sources import cache
from lit_mm.documents.sources.errors import Kind, SampleError
from lit_mm.documents.sources.parts import Part
from lit_mm.documents.sources.storage import Blob, FileBlob, expand, folder_of, is_url, join, local_path, name_of
from lit_mm.errors import UserError

if TYPE_CHECKING:  # a source can be checked without torch
    from torch import Tensor

LIMIT_PIXELS = 1024**3 // 4 // 3  # of one picture; more is refused, see `lit_mm.documents.decode`
CHUNK = 2048  # samples of the picture index that are kept at a time
UNKNOWN = (0, 0)  # in the picture index: the header could not be read


@dataclass(frozen=True, slots=True)
class SourcePicture:
    """A picture of a sample, wherever its bytes lie.

    Attributes:
        blob: where.
        height, width: upright, pixels.
        where, sample_id: of the sample it belongs to, for errors.
        limit_pixels: more are not decoded.
    """

    blob: Blob
    height: int
    width: int
    where: str
    sample_id: str
    limit_pixels: int = LIMIT_PIXELS

    @property
    def path(self) -> Path:
        """The file that holds it; of a URL what follows the scheme."""
        return local_path(self.blob.path)

    def pixels(self, at_least: tuple[int, int] | None = None) -> Tensor:
        """Decode. [3, H, W] uint8 RGB, smaller where `at_least` allows (see `lit_mm.documents.decode.decode`).

        Raises:
            SampleError: the file is gone or damaged.
        """
        from lit_mm.documents.decode import PictureError, decode

        try:
            return decode(
                self.blob.read(),
                at_least=at_least,
                promised=(self.height, self.width),
                limit_pixels=self.limit_pixels,
                name=self.blob.place,
            )
        except FileNotFoundError as error:
            raise self._broken(f"there is no image {self.blob.place!r}", "missing_file") from error
        except (PictureError, OSError) as error:
            raise self._broken(str(error), "unreadable_image") from error

    def read(self) -> Image.Image:
        """Decode. RGB; raises as `pixels`."""
        return Image.fromarray(self.pixels().permute(1, 2, 0).contiguous().numpy())

    def _broken(self, reason: str, kind: Kind) -> SampleError:
        return SampleError(reason, where=self.where, sample_id=self.sample_id, kind=kind)


class Source(ABC):
    """Documents by number, with their pictures' sizes and without their pixels.

    Args:
        path: data file, local or a URL; braces name several in order, `shard-{00000..00127}.tar`.
        images: folder or URL that relative picture names start from; the data file's own when left out.
        name: of the data set in errors, ledgers and tables; the file's name without its ending when left out.
        limit_pixels: a picture with more is refused.
    Raises:
        UserError: a data file is missing, holds nothing, or is not of this format.
    """

    expected = "entry"  # what messages call a sample
    has_ids = False  # the format gives every entry an `id`

    def __init__(
        self, path: str, images: str | None = None, name: str | None = None, limit_pixels: int = LIMIT_PIXELS
    ) -> None:
        if limit_pixels < 1:
            raise UserError(f"`limit_pixels` is at least 1, got {limit_pixels}")
        paths = expand(path)
        self.parts: list[Part] = [self.open_part(path) for path in paths]
        self.images = images
        self.name = name or name_of(paths[0]).partition(".")[0]
        self.limit_pixels = limit_pixels
        self.stops = list(accumulate(len(part) for part in self.parts))
        self._index = cache.load(self._key)

    # --- what a format says ------------------------------------------------------------------------------------------
    @abstractmethod
    def open_part(self, path: str) -> Part:
        """One data file."""

    @abstractmethod
    def blobs(self, sample: Sample) -> list[Blob]:
        """The sample's pictures, in reading order.

        Raises:
            SampleError: the entry is not of this format.
        """

    @abstractmethod
    def turns(self, sample: Sample, pictures: Sequence[SourcePicture]) -> tuple[Turn, ...]:
        """The sample's text with its pictures in their places.

        Raises:
            SampleError: the entry is not of this format, or text and pictures do not fit.
        """

    def identity(self, sample: Sample) -> str | None:
        """The sample's own id, None where it has none."""
        value = sample.entry.get("id") if isinstance(sample.entry, Mapping) else None
        return None if value is None else str(value)

    # --- documents ---------------------------------------------------------------------------------------------------
    def __len__(self) -> int:
        return self.stops[-1]

    def __getitem__(self, number: int) -> Document:
        """Document `number`. Parses its entry; decodes nothing, and reads no header that the picture index knows.

        Raises:
            SampleError: the sample is broken.
            IndexError: there is no such number.
        """
        sample = self.sample(number)
        return self.document(sample, self.known_sizes(number))

    def sample(self, number: int) -> Sample:
        """The parsed entry.

        Raises:
            SampleError: it cannot be parsed.
            IndexError: there is no such number.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"{self.name} has {len(self)} samples, there is no number {number}")
        at = bisect_right(self.stops, number)
        part = self.parts[at]
        inside = number - (self.stops[at - 1] if at else 0)
        sample = Sample(part.entry(inside), part.where(inside), part.path)
        sample.identity = self.identity(sample) or sample.where
        return sample

    def where(self, number: int) -> str:
        """File and place of a sample."""
        return self.sample(number).where

    def document(self, sample: Sample, sizes: Sequence[tuple[int, int]] | None = None) -> Document:
        """Put a sample together.

        Args:
            sizes: (height, width) of its pictures; None to read them from the files' headers.
        Raises:
            SampleError: the sample is broken.
        """
        blobs = self.blobs(sample)
        if sizes is None or len(sizes) != len(blobs):
            sizes = [UNKNOWN] * len(blobs)
        pictures = [self._picture(blob, size, sample) for blob, size in zip(blobs, sizes, strict=True)]
        turns = self.turns(sample, pictures)
        if not any(turn.role in ("assistant", "page") and turn.text.strip() for turn in turns):
            raise sample.error("nothing in it can be learnt", "no_supervision", "Add an answer, or leave it out")
        return Document(sample.identity, turns, source=self.name)

    def blob(self, name: Any, sample: Sample) -> Blob:
        """The picture file of that name.

        Raises:
            SampleError: a name is text.
        """
        if not isinstance(name, str) or not name:
            raise sample.error(f"the name of an image is text, got {str(name)[:80]!r}", "bad_entry")
        return FileBlob(join(self.images if self.images is not None else folder_of(sample.path), name))

    def _picture(self, blob: Blob, size: tuple[int, int], sample: Sample) -> SourcePicture:
        height, width = size if size != UNKNOWN else self._header(blob, sample)
        return SourcePicture(blob, height, width, sample.where, sample.identity, self.limit_pixels)

    def _header(self, blob: Blob, sample: Sample) -> tuple[int, int]:
        """(height, width) of an upright picture, pixels."""
        from lit_mm.documents.decode import PictureError, read_header

        try:
            with blob.open() as file:
                # the limit is checked below, so that it has a kind of its own
                height, width = read_header(file, limit_pixels=2**62, name=blob.place)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise sample.error(
                f"there is no image {blob.place!r}",
                "missing_file",
                "Is the path relative to another folder (`images`)?",
            ) from error
        except (PictureError, OSError) as error:
            raise sample.error(str(error), "unreadable_image") from error
        if height * width > self.limit_pixels:
            raise sample.error(
                f"the image {blob.place!r} has {width} x {height} pixels, at most {self.limit_pixels} are decoded",
                "too_many_pixels",
                "Shrink it, or raise `limit_pixels`",
            )
        return height, width

    # --- the picture index -------------------------------------------------------------------------------------------
    @property
    def _key(self) -> str:
        return cache.key_of("pictures", type(self).__name__, *self.options(), *self._files())

    def _files(self) -> tuple[list[str], list[str]]:
        """What the data files hold, by their stamps, and where their pictures lie."""
        folders = [self._absolute(self.images if self.images is not None else folder_of(p.path)) for p in self.parts]
        return [part.digest for part in self.parts], sorted(set(folders))

    @property
    def content(self) -> tuple[Any, ...]:
        """What decides its documents: format, arguments, and what its files hold."""
        plain = {k: v for k, v in vars(self).items() if v is None or isinstance(v, str | int | float | bool)}
        return type(self).__name__, sorted(plain.items()), *self._files()

    @staticmethod
    def _absolute(folder: str) -> str:
        return folder if is_url(folder) else str(Path(folder).absolute())

    def options(self) -> tuple[Any, ...]:
        """What else decides which pictures a sample has."""
        return ()

    @property
    def indexed(self) -> bool:
        return self._index is not None

    def known_sizes(self, number: int) -> list[tuple[int, int]] | None:
        """(height, width) of a sample's pictures as the index has them; None without an index."""
        if self._index is None:
            return None
        first, stop = (int(n) for n in self._index["firsts"][number : number + 2])
        return [(int(height), int(width)) for height, width in self._index["sizes"][first:stop]]

    def build_index(self, progress: Callable[[int], None] = lambda samples: None) -> tuple[int, int]:
        """Read every picture's header once, and keep the sizes. Interrupted, it goes on where it was.

        A sample or a picture that is broken is kept as unknown: it is read again, and told of, when it is asked for.

        Args:
            progress: told how many samples are done, those of an earlier attempt included.
        Returns:
            How many pictures there are, and how many of them are unknown.
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
            """[1 + count + 2 * pictures]: number of samples, their counts of pictures, then heights and widths."""
            start = chunk * CHUNK
            numbers = range(start, min(start + CHUNK, len(self)))
            counts, sizes = [], []
            for number in numbers:
                found = self._sizes(number)
                counts.append(len(found))
                sizes += found
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
                sizes.append(self._header(blob, sample))
            except SampleError:
                sizes.append(UNKNOWN)
        return sizes

    # --- checking ----------------------------------------------------------------------------------------------------
    def check(self, number: int) -> tuple[str | None, int, list[SampleError]]:
        """Everything that can be said about a sample without decoding pixels: the files' headers are read afresh.

        Returns:
            The sample's own id (None without one), its number of pictures, and what is wrong.
        """
        try:
            sample = self.sample(number)
        except SampleError as error:
            return None, 0, [error]
        identity = self.identity(sample)
        errors = []
        if identity is None and self.has_ids:
            errors.append(sample.error("it has no `id`", "missing_id", "Give every entry its own"))
        try:
            blobs = self.blobs(sample)
        except SampleError as error:
            return identity, 0, [*errors, error]
        for blob in blobs:
            try:
                self._header(blob, sample)
            except SampleError as error:
                errors.append(error)
        try:
            self.document(sample, [(1, 1)] * len(blobs))  # the headers are read: only the text is looked at
        except SampleError as error:
            errors.append(error)
        return identity, len(blobs), errors


class Sample:
    """A parsed entry.

    Attributes:
        entry: as its file holds it.
        where: file and place.
        path: the data file.
        identity: its id; `where` when it has none.
    """

    __slots__ = ("entry", "identity", "path", "where")

    def __init__(self, entry: Any, where: str, path: str) -> None:
        self.entry, self.where, self.path, self.identity = entry, where, path, where

    def error(self, reason: str, kind: Kind, remedy: str = "") -> SampleError:
        return SampleError(reason, where=self.where, sample_id=self.identity, kind=kind, remedy=remedy)

    def field(self, key: str, kind: type, described: str) -> Any:
        """A value of the entry.

        Raises:
            SampleError: the entry is not an object, or the value is missing or of another type.
        """
        value = self.entry.get(key) if isinstance(self.entry, Mapping) else None
        if not isinstance(value, kind):
            raise self.error(f"{described}, got {str(self.entry)[:80]!r}", "bad_entry")
        return value


def names_in(value: Any) -> Iterator[Any]:
    """Names of pictures: a text, a list of texts, or nothing."""
    if value is None or value == "":
        return iter(())
    return iter(value) if isinstance(value, list) else iter((value,))
