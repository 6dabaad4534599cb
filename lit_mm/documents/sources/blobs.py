"""Where the bytes of a picture lie: a file of its own, a span of a larger file, or memory."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from lit_mm.documents.sources.storage import open_file, read_file, read_range


class Blob(Protocol):
    """Where the bytes of one picture lie. It can be pickled."""

    @property
    def place(self) -> str:
        """For people: the file, and what of it."""
        ...

    @property
    def path(self) -> str:
        """The file that holds it."""
        ...

    def open(self) -> BinaryIO: ...

    def read(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class FileBlob:
    """A file of its own."""

    path: str

    @property
    def place(self) -> str:
        return self.path

    def open(self) -> BinaryIO:
        return open_file(self.path)

    def read(self) -> bytes:
        return read_file(self.path)


@dataclass(frozen=True, slots=True)
class SpanBlob:
    """Bytes [start, start + size) of a larger file, such as a member of a tar.

    Attributes:
        member: what it is called there.
        version: see `read_range`.
    """

    path: str
    start: int
    size: int
    member: str
    version: str = ""

    @property
    def place(self) -> str:
        return f"{self.path}: {self.member}"

    def open(self) -> BinaryIO:
        return io.BufferedReader(_SpanFile(self), buffer_size=1 << 14)

    def read(self) -> bytes:
        return read_range(self.path, self.start, self.size, self.version)


class _SpanFile(io.RawIOBase):
    """A span as a file, read as far as it is asked for: a header is a few kilobytes of a picture."""

    def __init__(self, span: SpanBlob) -> None:
        self.span, self.at = span, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + (0, self.at, self.span.size)[whence]
        return self.at

    def readinto(self, buffer: Any) -> int:
        size = max(0, min(len(buffer), self.span.size - self.at))
        piece = read_range(self.span.path, self.span.start + self.at, size, self.span.version) if size else b""
        buffer[: len(piece)] = piece
        self.at += len(piece)
        return len(piece)


@dataclass(frozen=True, slots=True)
class BytesBlob:
    """Bytes that are in memory already.

    Attributes:
        data: the bytes.
        path, member: where they came from.
    """

    data: bytes
    path: str
    member: str

    @property
    def place(self) -> str:
        return f"{self.path}: {self.member}"

    def open(self) -> BinaryIO:
        return io.BytesIO(self.data)

    def read(self) -> bytes:
        return self.data
