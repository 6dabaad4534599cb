"""These functions select tensors of a checkpoint by name prefix and put prefixes on names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor

Entry = TypeVar("Entry")  # a tensor, or its description


def below(state: Mapping[str, Entry], prefix: str) -> dict[str, Entry]:
    """Select the entries that start with `prefix` and remove it from their names."""
    return {name.removeprefix(prefix): entry for name, entry in state.items() if name.startswith(prefix)}


def without(state: Mapping[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    """Select the entries that start with none of `prefixes`."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(prefixes)}


def add_prefix(state: Mapping[str, Tensor], place: str, only: str = "") -> dict[str, Tensor]:
    """Put `place` and a dot in front of names.

    Args:
        state: tensors by name.
        place: name of the part in the target model.
        only: names that do not start with this stay unchanged, so that `load_strict` reports them.
    """
    return {f"{place}.{name}" if name.startswith(only) else name: tensor for name, tensor in state.items()}
