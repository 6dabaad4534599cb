"""Files of a source. An index of byte offsets locates entries by number, and no parsed entry stays in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from lit_mm.documents.sources import cache
from lit_mm.documents.sources.paths import name_of
from lit_mm.documents.sources.storage import stamp
from lit_mm.errors import UserError


def digest_of(path: str) -> str:
    """Return the hash of a data file, see `lit_mm.documents.sources.storage.Stamp`.

    Raises:
        UserError: the file does not exist.
    """
    version = stamp(path)
    if version is None:
        raise missing(path)
    return version.digest


def missing(path: str) -> UserError:
    """Return the error of a data file that does not exist."""
    return UserError(f"there is no data file {path!r}. Correct the source's `path`")


class Part(ABC):
    """One file of a source.

    Args:
        path: local path or URL.
        expected: word for an entry in messages, such as "conversation".
        unpacked: local file with the decompressed content of `path`; None if `path` is not compressed.
    Raises:
        UserError: the file does not exist or is empty.
    """

    def __init__(self, path: str, expected: str, unpacked: str | None = None) -> None:
        self.path, self.name, self.expected = path, name_of(path), expected
        self.file = path if unpacked is None else unpacked
        self.digest = digest_of(path)
        self.index = self._open_index()
        if not len(self):
            raise UserError(f"the data set is empty: {path!r} holds no {expected}")

    def _open_index(self) -> dict[str, np.ndarray]:
        key = cache.key_of(type(self).__name__, self.digest)
        return cache.load(key) or cache.store(key, self.scan())

    @abstractmethod
    def scan(self) -> dict[str, np.ndarray]:
        """Find the entries and return the arrays of the index."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def where(self, number: int) -> str:
        """Return file and place of an entry."""

    @abstractmethod
    def entry(self, number: int) -> Any:
        """Read and parse an entry.

        Raises:
            SampleError: the entry cannot be parsed.
        """
