"""Compressed data files, which are decompressed into the cache folder once because they have no random access."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, BinaryIO

from lit_mm.documents.sources import cache
from lit_mm.documents.sources.part import digest_of
from lit_mm.documents.sources.storage import open_file
from lit_mm.errors import UserError

ENDINGS = (".gz", ".bz2", ".xz", ".zst", ".zip")
ZIP = b"PK\x03\x04"
DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zipfile.BadZipFile)


class ZstdFile(io.RawIOBase):
    """The content of a file that zstd has compressed, as a stream."""

    def __init__(self, packed: BinaryIO) -> None:
        import pyarrow as pa

        self.stream = pa.CompressedInputStream(pa.PythonFile(packed, "r"), "zstd")

    def read(self, size: int = -1) -> bytes:
        """Read at most `size` bytes.

        Raises:
            EOFError: the file is damaged or cut short.
        """
        try:
            return self.stream.read(None if size < 0 else size)
        except OSError as error:
            raise EOFError(str(error)) from error


# First bytes of a file -> function that opens its content
OPENERS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"\x28\xb5\x2f\xfd": ZstdFile,
}


def unpack(path: str) -> str | None:
    """Decompress a file into the cache folder and return the new file; None for a file that is not compressed.

    Args:
        path: file compressed by gzip, bzip2, xz or zstd, or a zip archive of one file, under any name.
    Raises:
        UserError: the file is damaged or compressed in another way, or the cache folder cannot be written.
    """
    with open_file(path) as file:
        beginning = file.read(6)
    if not beginning.startswith((ZIP, *OPENERS)):
        return None
    target = cache.cache_folder() / "unpacked" / digest_of(path)
    if target.is_file():
        return str(target)
    aside = target.with_name(f"{target.name}.{uuid.uuid4().hex}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open_file(path) as packed, _content(packed, beginning, path) as content, aside.open("wb") as file:
            shutil.copyfileobj(content, file, 1 << 20)
        os.replace(aside, target)
    except DAMAGED as error:
        raise UserError(f"the data file {path!r} cannot be unpacked ({error}). Was it copied completely?") from error
    except OSError as error:
        raise cache.unwritable(error) from error
    finally:
        aside.unlink(missing_ok=True)
    return str(target)


@contextmanager
def _content(packed: BinaryIO, beginning: bytes, path: str) -> Iterator[IO[bytes]]:
    """Open the decompressed content as a stream."""
    opener = next((opener for mark, opener in OPENERS.items() if beginning.startswith(mark)), None)
    if opener is not None:
        with opener(packed) as content:
            yield content
        return
    with zipfile.ZipFile(packed) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        if len(members) != 1:
            raise UserError(
                f"the data file {path!r} is a zip archive of {len(members)} files: unpack it, and name one of them"
            )
        with archive.open(members[0]) as content:
            yield content
