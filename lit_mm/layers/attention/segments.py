"""Segments of a flat row: their lengths on the host and their starts on a device."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from lit_mm.layers.attention.choice import Backend


class Segments:
    """Segments of a flat row, which do not attend to each other. One instance serves all layers of a forward.

    Args:
        lengths: number of queries of each segment; they sum to T, the length of the row. A segment may be empty.
        key_lengths: number of keys of each segment, in a separate row of keys; None: queries and keys are the same row.
        causal: each position sees itself and the earlier ones of its segment; needs `key_lengths` to be None.
        backend: attention backend; see `choice.py`.
        device: device of the attention. On a device other than a CPU the constructor builds `starts` and `key_starts`
            for all layers, so compiled layers only read them. None: treated as a CPU.

    Attributes:
        longest, longest_keys: largest number of queries and of keys in a segment.
        host_starts: [segments + 1] int32 on the host: start of each segment of queries, then the length of the row.
        starts, key_starts: [segments + 1] int32 on the device: start of each segment, then the length of the row.
            Without `key_lengths` both are the same tensor, as cuDNN's causal kernel requires. None on a CPU.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        key_lengths: Sequence[int] | None = None,
        *,
        causal: bool = True,
        backend: Backend = "auto",
        device: torch.device | None = None,
    ) -> None:
        self.lengths, self.key_lengths = lengths, lengths if key_lengths is None else key_lengths
        self.causal, self.backend = causal, backend
        self.longest, self.longest_keys = max(self.lengths, default=0), max(self.key_lengths, default=0)
        self.host_starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device="cpu")
        self.starts = self.key_starts = None
        if device is not None and device.type != "cpu":
            self.starts = starts_of(self.lengths, device)
            self.key_starts = self.starts if key_lengths is None else starts_of(key_lengths, device)


def starts_of(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Build [segments + 1] int32 on a device: the start of each segment, then the length of the row."""
    starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, pin_memory=device.type == "cuda")
    return starts.to(device, non_blocking=True)
