"""Mappings that record which of their keys are read, put in place of the mappings in a recipe while it is planned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jsonargparse._instantiation as instantiation
import pytest


class RecordingMapping(dict):
    """A dict that records the keys that are read. To go through all keys, or to copy them, reads all of them.

    Attributes:
        place: class and argument of the mapping, for messages.
        read: keys that have been read.
    """

    def __init__(self, content: dict[Any, Any], place: str) -> None:
        super().__init__(content)
        self.place = place
        self.read: set[Any] = set()

    def __getitem__(self, key: Any) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: Any, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)

    def pop(self, key: Any, *default: Any) -> Any:
        self.read.add(key)
        return super().pop(key, *default)

    def __iter__(self) -> Iterator[Any]:
        self.read.update(super().keys())
        return super().__iter__()

    def keys(self) -> Any:
        self.read.update(super().keys())
        return super().keys()

    def items(self) -> Any:
        self.read.update(super().keys())
        return super().items()

    def values(self) -> Any:
        self.read.update(super().keys())
        return super().values()


@contextmanager
def recording(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[RecordingMapping]]:
    """Collect the mappings that classes get as arguments inside a `with` block; each records its reads."""
    mappings: list[RecordingMapping] = []

    def instantiate(class_type: type, *args: Any, **kwargs: Any) -> Any:
        for name, value in kwargs.items():
            if type(value) is dict:
                kwargs[name] = RecordingMapping(value, f"{class_type.__qualname__}.{name}")
                mappings.append(kwargs[name])
        return class_type(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(instantiation, "default_class_instantiator", instantiate)
        yield mappings


def unread_keys(mappings: list[RecordingMapping]) -> list[str]:
    """Keys that nothing has read, as CLASS.ARGUMENT.KEY."""
    return [f"{mapping.place}.{key}" for mapping in mappings for key in dict.keys(mapping) if key not in mapping.read]
