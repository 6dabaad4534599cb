"""Parsed entries of a data file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from lit_mm.documents.printable import brief
from lit_mm.documents.sources.errors import Kind, SampleError
from lit_mm.documents.sources.forms import format_of

Result = TypeVar("Result")


class Sample:
    """A parsed entry.

    Attributes:
        entry: value in the file.
        where: file and place.
        path: path of the data file.
        identity: id of the entry; `where` if it has none.
        notes: names of the sample's notes, see `lit_mm.documents.sources.check.NOTES`.
    """

    __slots__ = ("_results", "entry", "identity", "notes", "path", "where")

    def __init__(self, entry: Any, where: str, path: str) -> None:
        self.entry, self.where, self.path, self.identity = entry, where, path, where
        self.notes: set[str] = set()
        self._results: dict[str, Any] = {}

    def once(self, name: str, compute: Callable[[], Result]) -> Result:
        """Return the result of `compute`, which is called once per entry and name.

        Args:
            name: name of the result.
        """
        if name not in self._results:
            self._results[name] = compute()
        return self._results[name]

    def error(self, reason: str, kind: Kind, remedy: str = "") -> SampleError:
        return SampleError(reason, where=self.where, sample_id=self.identity, kind=kind, remedy=remedy)

    def field(self, key: str, kind: type, described: str) -> Any:
        """Return the value of a key.

        Raises:
            SampleError: the entry is not an object, or the value is missing or of another type. The message names the
                format that the entry looks like.
        """
        value = self.entry.get(key) if isinstance(self.entry, Mapping) else None
        if not isinstance(value, kind):
            guess = None if isinstance(self.entry, Mapping) and key in self.entry else format_of(self.entry)
            remedy = "" if guess is None else f"Is its `format` {guess}?"
            raise self.error(f"{described}, got {brief(self.entry)}", "bad_entry", remedy)
        return value
