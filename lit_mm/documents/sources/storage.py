"""Bytes of files, local or at a URL that fsspec knows (memory://, s3://, gs://, https://), whole or a range of them."""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from lit_mm.errors import UserError

SAMPLED, BLOCK = 64, 4096  # blocks of a file that its stamp reads, and bytes of each
COPY = 1 << 22  # bytes moved at once
SCHEME = re.compile(r"[A-Za-z][\w+.-]*://")
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_url(path: str) -> bool:
    return SCHEME.match(path) is not None


def join(folder: str, name: str) -> str:
    """`name` inside `folder`; an absolute path or a URL stays what it is."""
    if is_url(name) or os.path.isabs(name):
        return name
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else os.path.join(folder, name)


def folder_of(path: str) -> str:
    return path.rpartition("/")[0] if is_url(path) else os.path.dirname(path)


def name_of(path: str) -> str:
    return path.rpartition("/")[2] if is_url(path) else os.path.basename(path)


def expand(pattern: str) -> list[str]:
    """The paths of a brace pattern, in order: `a-{00..02}.tar` is three, `{x,y}.json` two, one without braces itself.

    Raises:
        UserError: a range runs backwards, or braces hold neither a range nor a list.
    """
    choices: list[list[str]] = []
    for inside in BRACES.findall(pattern):
        span = RANGE.fullmatch(inside)
        if span:
            first, last = span.groups()
            if int(last) < int(first):
                raise UserError(f"the range {{{inside}}} in {pattern!r} runs backwards: write the smaller number first")
            choices.append([str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)])
        elif "," in inside:
            choices.append(inside.split(","))
        else:
            raise UserError(f"the braces in {pattern!r} hold {inside!r}: write a range {{000..127}} or a list {{a,b}}")
    pieces = BRACES.split(pattern)[::2]  # what stands between the braces
    return [pieces[0] + "".join(c + p for c, p in zip(words, pieces[1:], strict=True)) for words in product(*choices)]


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a file was when it was looked at.

    Attributes:
        size: bytes.
        digest: hash of size, time of change and sampled bytes; another file, or the same after a change, has another.
    """

    size: int
    digest: str


def stamp(path: str) -> Stamp | None:
    """The file's stamp; None where there is no such file.

    Local files are sampled in `SAMPLED` places (small ones read whole), remote ones at both ends.
    """
    if is_url(path):
        system, inside = _system(path)
        if not system.isfile(inside):
            return None
        info = system.info(inside)
        size = int(info["size"])
        marks = [str(info[key]) for key in ("ETag", "etag", "mtime", "LastModified", "updated") if key in info]
        if system.protocol in ("memory", ("memory",)):
            marks.append(str(system.modified(inside)))
        starts = {0, max(0, size - BLOCK)}
    else:
        if not os.path.isfile(path):
            return None
        status = os.stat(path)
        size, marks = status.st_size, [str(status.st_mtime_ns)]
        starts = {(size - BLOCK) * n // (SAMPLED - 1) for n in range(SAMPLED)} if size > BLOCK * SAMPLED else {0}
    digest = hashlib.blake2b(repr((size, marks)).encode(), digest_size=16)
    length = BLOCK if len(starts) > 1 else BLOCK * SAMPLED
    with open_file(path) as file:
        for start in sorted(starts):
            file.seek(start)
            digest.update(file.read(length))
    return Stamp(size, digest.hexdigest())


def open_file(path: str) -> BinaryIO:
    if is_url(path):
        system, inside = _system(path)
        return system.open(inside, "rb")
    return open(path, "rb")


def read_file(path: str) -> bytes:
    with open_file(path) as file:
        return file.read()


def read_range(path: str, start: int, size: int, version: str = "") -> bytes:
    """Bytes [start, start + size), fewer where the file ends before.

    Local descriptors stay open; they are read with pread, so that forked workers may share them.

    Args:
        version: of the file, such as its stamp's digest; a new version is opened anew.
    """
    if is_url(path):
        system, inside = _system(path)
        return system.cat_file(inside, start=start, end=start + size)
    descriptor = _descriptor(path, version)
    pieces: list[bytes] = []
    while size > 0 and (piece := os.pread(descriptor.number, size, start)):  # one call gives 2 GB at most
        pieces.append(piece)
        start, size = start + len(piece), size - len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class _Descriptor:
    """An open local file that is closed when nobody uses it any more."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@lru_cache(maxsize=128)  # of the 1024 descriptors that a process usually may have
def _descriptor(path: str, version: str) -> _Descriptor:
    return _Descriptor(path)


@contextmanager
def mapped(path: str) -> Iterator[mmap.mmap | bytes]:
    """The whole file as a buffer that takes no memory of its own; a remote file is copied to a temporary one."""
    if is_url(path):
        with open_file(path) as remote, tempfile.TemporaryFile() as local:
            while block := remote.read(COPY):
                local.write(block)
            local.flush()
            yield _map(local)
    else:
        with open(path, "rb") as file:
            yield _map(file)


def _map(file: Any) -> mmap.mmap | bytes:
    """Unmapped with the last reference to it: a regular expression at work on it forbids to close it."""
    if os.fstat(file.fileno()).st_size == 0:  # an empty file cannot be mapped
        return b""
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _system(path: str) -> tuple[Any, str]:
    """The file system of a URL, and the path inside it.

    Raises:
        UserError: fsspec does not know its scheme, or lacks the package for it.
    """
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(path)
    except (ValueError, ImportError) as error:
        raise UserError(f"the URL {path!r} cannot be opened: {error}") from error


# --- blobs -----------------------------------------------------------------------------------------------------------
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


def local_path(path: str) -> Path:
    """A path as the file system knows it; of a URL what follows its scheme."""
    return Path(SCHEME.sub("", path))
