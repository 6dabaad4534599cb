"""Taking a checkpoint apart by the beginnings of its names, and putting parts where a model has them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def without(state: Mapping[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    """The entries whose names begin with none of these."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(prefixes)}


def placed(state: Mapping[str, Tensor], place: str, only: str = "") -> dict[str, Tensor]:
    """The entries of a part under the names they have in a model whose part is called `place`.

    Args:
        only: how the names of the part begin; others stay, so that `load_strict` names them.
    """
    return {f"{place}.{name}" if name.startswith(only) else name: tensor for name, tensor in state.items()}
