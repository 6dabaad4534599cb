"""Segments of a flat row: lengths on the host, and where each begins on a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from lit_mm.layers.attention.choice import Backend


@dataclass(frozen=True, eq=False)
class Segments:
    """Segments of a flat row, which are blind to each other. One instance serves all layers of a forward.

    Attributes:
        lengths: number of queries of each segment; they sum to T, the length of the row. A segment may be empty.
        key_lengths: number of keys of each segment, in a row of their own; None: queries and keys are the same row.
        causal: each position sees itself and the earlier ones of its segment; needs `key_lengths` to be None.
        backend: see `choice.py`.
    """

    lengths: Sequence[int]
    key_lengths: Sequence[int] | None = None
    causal: bool = True
    backend: Backend = "auto"
    _starts: dict[tuple[bool, torch.device], Tensor] = field(default_factory=dict, init=False, repr=False)

    def starts(self, device: torch.device, *, of_keys: bool = False) -> Tensor:
        """[segments + 1] int32: where each segment begins, and the length of the row. Copied to a device once."""
        of_keys = of_keys and self.key_lengths is not None
        if (of_keys, device) not in self._starts:
            lengths = self.key_lengths if of_keys else self.lengths
            starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, pin_memory=device.type == "cuda")
            self._starts[of_keys, device] = starts.to(device, non_blocking=True)
        return self._starts[of_keys, device]
