"""The decoding state of a decoder: keys and values per layer, laid out sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache


@dataclass
class DecoderState:
    """Keys and values of N samples.

    Attributes:
        cache: keys and values per layer, each [N, H, T, D], padded on the left to the longest sample.
        visible: [N, T] True where a key is a sample's own, False at padding.
        positions: [N] position ids of the tokens that come next.
    """

    cache: DynamicCache
    visible: Tensor
    positions: Tensor

    @classmethod
    def of_row(cls, cache: DynamicCache, lengths: Sequence[int], positions: Tensor) -> DecoderState:
        """The state after a flat row was read.

        Args:
            cache: keys and values of the row, each [1, H, T, D]; it is laid out anew in place.
            lengths: positions of each sample; they sum to T.
            positions: [1, T] position ids of the row.
        """
        longest = max(lengths)
        for layer in cache.layers:
            layer.keys, layer.values = (by_sample(states, lengths) for states in (layer.keys, layer.values))
        ends = torch.tensor(lengths, device=positions.device)
        places = torch.arange(longest, device=positions.device)
        return cls(cache, places >= longest - ends[:, None], positions[0, ends.cumsum(0) - 1] + 1)

    def extend(self) -> tuple[Tensor, Tensor]:
        """Make room for one more token of every sample.

        Returns:
            The mask [N, 1, 1, T + 1] of the keys that each sample sees, and the position ids [N, 1] of the new tokens.
        """
        self.visible = F.pad(self.visible, (0, 1), value=True)
        positions = self.positions[:, None]
        self.positions = self.positions + 1
        return self.visible[:, None, None], positions

    def reorder(self, samples: Tensor) -> None:
        """Keep these samples [N'] in this order."""
        self.cache.batch_select_indices(samples)
        self.visible, self.positions = self.visible[samples], self.positions[samples]


def by_sample(states: Tensor, lengths: Sequence[int]) -> Tensor:
    """[1, H, T, D] of a flat row -> [N, H, T_max, D], each sample padded with zeros on the left."""
    longest = max(lengths)
    pieces = states[0].split(tuple(lengths), dim=1)
    return torch.stack([F.pad(piece, (0, 0, longest - piece.shape[1], 0)) for piece in pieces])
