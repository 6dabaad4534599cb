"""Reading of files, whole or in ranges, local or at a URL that fsspec knows (memory://, s3://, gs://, https://)."""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO

from lit_mm.documents.sources.paths import is_url
from lit_mm.errors import UserError

SAMPLED, BLOCK = 64, 4096  # number of sampled blocks of a file, and bytes of each
COPY = 1 << 22  # bytes moved at once
GONE = (404, 410)  # status codes of a missing file


@dataclass(frozen=True, slots=True)
class Stamp:
    """The state of a file at one time.

    Attributes:
        size: number of bytes.
        digest: hash of size, time of change and sampled bytes. It differs for another file, and after a change.
    """

    size: int
    digest: str


def stamp(path: str) -> Stamp | None:
    """Return the stamp of a file; None if the file does not exist.

    Local files are sampled in `SAMPLED` places, small ones are read whole, and remote ones are read at both ends.
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
    """Open a file to read bytes.

    Raises:
        OSError: the file does not exist or cannot be read, or it is a pipe or a device, which could block for ever.
        UserError: the URL's file system is not installed.
    """
    if is_url(path):
        with remote(path):
            system, inside = _system(path)
            return system.open(inside, "rb")
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(f"{path!r} is a pipe, a socket or a device and not a file")
    return open(path, "rb")


def read_file(path: str) -> bytes:
    """Read a whole file. For the errors see `open_file`."""
    with open_file(path) as file, remote(path):
        return file.read()


@contextmanager
def remote(path: str) -> Iterator[None]:
    """Turn errors of web servers and of the connection into OSErrors inside a `with` block. Other errors are unchanged.

    Raises:
        FileNotFoundError: the server answers that the file does not exist.
    """
    if not path.startswith(("http://", "https://")):
        yield
        return
    from aiohttp import ClientError, ClientResponseError

    try:
        yield
    except FileNotFoundError as error:  # fsspec says so whatever the reason is
        cause = error.__cause__
        if cause is None or (isinstance(cause, ClientResponseError) and cause.status in GONE):
            raise
        raise OSError(f"{path!r} cannot be reached: {cause}") from error
    except ClientError as error:
        raise OSError(f"{path!r} cannot be read: {error}") from error


def read_range(path: str, start: int, size: int, version: str = "") -> bytes:
    """Read the bytes [start, start + size) of a file, or fewer if the file ends before.

    Local descriptors stay open and are read with pread, so that forked workers may share them.

    Args:
        version: version of the file, such as its stamp's digest; a new version is opened again.
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
    """An open local file, which is closed with its last reference."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@lru_cache(maxsize=128)  # a process usually may have 1024
def _descriptor(path: str, version: str) -> _Descriptor:
    return _Descriptor(path)


@contextmanager
def mapped(path: str) -> Iterator[mmap.mmap | bytes]:
    """Map a whole file as a buffer without copying it. A remote file is copied to a temporary file first."""
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
    """Map an open file. The last reference unmaps it, because a running regular expression forbids to close it."""
    if os.fstat(file.fileno()).st_size == 0:  # an empty file cannot be mapped
        return b""
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _system(path: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path inside it.

    Raises:
        UserError: fsspec does not know the scheme, or lacks the package for it.
    """
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(path)
    except (ValueError, ImportError) as error:
        raise UserError(
            f"the URL {path!r} cannot be opened: {error}. Install the package, or copy the files to this machine"
        ) from error
