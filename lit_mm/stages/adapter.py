"""Adapters of a recipe as data: the stage that starts one, its settings, and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from lit_mm.errors import UserError

After = Literal["keep", "merge", "drop"]


@dataclass
class Adapter:
    """A low-rank adapter on a part, which learns in place of the part.

    Its parameters form the part `<part>_adapter`; the part itself stays frozen.

    Args:
        type: "lora", "rslora" or "dora", see `lit_mm.layers.adapters.add_adapters`.
        rank: rank of the branches.
        alpha: scale of the branches x rank (rsLoRA: x square root of the rank); None: rank.
        dropout: probability of dropout on the input of a branch in training.
        targets: "all-linear" for every linear of the part's layers, never of embeddings or heads, or names of linears.
        after: fate of the adapter when a stage begins that follows this one: it stays ("keep"), its branches are added
            to the part ("merge"), or it is removed ("drop").
    Raises:
        UserError: the rank is below 1, or the dropout is not in [0, 1).
    """

    type: Literal["lora", "rslora", "dora"] = "lora"
    rank: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    targets: Literal["all-linear"] | list[str] = "all-linear"
    after: After = "keep"

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise UserError(f"an adapter has a rank of at least 1 and a dropout in [0, 1), got {self}")

    def fits(self, other: Adapter) -> bool:
        """Return True if two adapters differ in `after` alone."""
        return replace(self, after=other.after) == other


def fates(present: Mapping[str, Adapter], first: Mapping[str, Adapter]) -> dict[str, After]:
    """Return part -> fate of an adapter of the checkpoint that another recipe starts from.

    An adapter that its own stage would keep goes on if the recipe's first stage has the same settings for it, and is
    merged otherwise.

    Args:
        present: part -> adapter of the checkpoint.
        first: part -> adapter of the recipe's first stage.
    """
    goes_on = {part for part, adapter in present.items() if part in first and adapter.fits(first[part])}
    return {
        part: "merge" if adapter.after == "keep" and part not in goes_on else adapter.after
        for part, adapter in present.items()
    }


def adapter_part(part: str) -> str:
    """Return the name of the part that the adapter of a part forms."""
    return f"{part}_adapter"
