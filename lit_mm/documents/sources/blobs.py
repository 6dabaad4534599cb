"""Places of the bytes of a picture: a file, a span of a larger file, or memory."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from lit_mm.documents.sources.storage import open_file, read_file, read_range


class Blob(Protocol):
    """The place of the bytes of one picture. It can be pickled."""

    @property
    def place(self) -> str:
        """The file and the place inside it, for messages."""
        ...

    @property
    def path(self) -> str:
        """The file that holds the bytes."""
        ...

    def open(self) -> BinaryIO: ...

    def read(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class FileBlob:
    """A whole file."""

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
        member: name of the span in the larger file.
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
    """Reads a span like a file, and only the bytes that are asked for: a picture's header has a few kilobytes."""

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
    """Bytes in memory.

    Attributes:
        data: the bytes.
        path, member: file and member that the bytes were read from.
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
