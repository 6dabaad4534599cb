"""One parsed entry of a data file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_mm.documents.printable import brief
from lit_mm.documents.sources.errors import Kind, SampleError


class Sample:
    """A parsed entry.

    Attributes:
        entry: the value that its file holds.
        where: file and place.
        path: the data file.
        identity: its id; `where` if it has none.
        notes: names of what is unusual and trained on all the same, see `lit_mm.documents.sources.check.NOTES`.
    """

    __slots__ = ("entry", "identity", "notes", "path", "where")

    def __init__(self, entry: Any, where: str, path: str) -> None:
        self.entry, self.where, self.path, self.identity = entry, where, path, where
        self.notes: set[str] = set()

    def error(self, reason: str, kind: Kind, remedy: str = "") -> SampleError:
        return SampleError(reason, where=self.where, sample_id=self.identity, kind=kind, remedy=remedy)

    def field(self, key: str, kind: type, described: str) -> Any:
        """A value of the entry.

        Raises:
            SampleError: the entry is not an object, or the value is missing or of another type.
        """
        value = self.entry.get(key) if isinstance(self.entry, Mapping) else None
        if not isinstance(value, kind):
            raise self.error(f"{described}, got {brief(self.entry)}", "bad_entry")
        return value
