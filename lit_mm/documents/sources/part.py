"""One file of a source: entries by number, located through an index of byte offsets. Nothing parsed is kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from lit_mm.documents.sources import cache
from lit_mm.documents.sources.paths import name_of
from lit_mm.documents.sources.storage import stamp
from lit_mm.errors import UserError


def digest_of(path: str) -> str:
    """The hash of a data file, see `lit_mm.documents.sources.storage.Stamp`.

    Raises:
        UserError: there is no such file.
    """
    version = stamp(path)
    if version is None:
        raise UserError(f"there is no data file {path!r}. Correct the source's `path`")
    return version.digest


class Part(ABC):
    """One file of a source.

    Args:
        path: local path or URL.
        expected: what an entry is, for messages ("conversation").
        unpacked: local file that holds the content of a compressed `path`; None for `path` itself.
    Raises:
        UserError: there is no such file, or it holds nothing.
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
        """Find the entries: the arrays of the index."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def where(self, number: int) -> str:
        """File and place of an entry."""

    @abstractmethod
    def entry(self, number: int) -> Any:
        """Read and parse an entry.

        Raises:
            SampleError: it cannot be parsed.
        """
