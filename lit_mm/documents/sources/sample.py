"""Parsed entries of a data file."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from lit_mm.documents.printable import brief
from lit_mm.documents.sources.errors import Kind, SampleError
from lit_mm.documents.sources.forms import format_of
from lit_mm.documents.sources.listed import list_of

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
                format that the entry looks like. A list may be stored as in `list_of`.
        """
        value = self.entry.get(key) if isinstance(self.entry, Mapping) else None
        if kind is list and isinstance(value, str | Mapping):
            value = self.once(f"list {key}", lambda: list_of(value))
        if not isinstance(value, kind):
            raise self.error(f"{described}, got {brief(self.entry)}", "bad_entry", self._remedy(key, value, kind))
        return value

    def _remedy(self, key: str, value: Any, kind: type) -> str:
        """Return the advice about a value of the wrong type; "" for none."""
        if not isinstance(self.entry, Mapping):
            first = self.entry[0] if isinstance(self.entry, list) and self.entry else None
            is_turn = isinstance(first, Mapping) and not {"role", "from"}.isdisjoint(first)
            return f"Write the list of turns into an object, under its key `{key}`" if is_turn else ""
        if kind is str and isinstance(value, int | float):
            return f"Write `{key}` as text, in quotes"
        if kind is str and isinstance(value, list):
            if value and isinstance(value[0], Mapping) and "role" in value[0]:
                return "Is its `format` messages?"
            return f"Write one text as `{key}`, and a row for each further one"
        if kind is list and isinstance(value, str):
            return f"Write `{key}` as a list, or as text of a JSON list"
        if key in self.entry and value is not None:
            return ""
        if (guess := format_of(self.entry)) is not None:
            return f"Is its `format` {guess}?"
        names = [name for name in self.entry if isinstance(name, str) and name != key]
        near = difflib.get_close_matches(key, names, n=1, cutoff=0.8)
        if near and kind is str and isinstance(self.entry[near[0]], list):
            return f"Write one of its `{near[0]}` as `{key}`"
        return f"Rename its `{near[0]}` to `{key}`" if near else ""
