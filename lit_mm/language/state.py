"""Decoding states hold keys and values per layer, laid out sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache


@dataclass
class MemoryState:
    """Keys and values of the memory of N samples during decoding, see `lit_mm.language.cross_attention`.

    A sample without memory has keys and values of zero, so that what it reads is zero.

    Attributes:
        cache: keys and values per layer, each [N, H, S, D], padded with zeros on the left to the largest memory.
        lengths: number of memory vectors of each sample, kept on the host.
        visible: [N, S] False at the padding of a sample with memory; None if nothing is hidden.
    """

    cache: DynamicCache
    lengths: list[int]
    visible: Tensor | None = None

    def lay_out(self, device: torch.device) -> None:
        """Lay out the keys and values of a row, [1, H, S', D], sample by sample; S' may exceed the sum of lengths."""
        longest = max(1, *self.lengths)
        for layer in self.cache.layers:
            layer.keys, layer.values = (
                torch.stack(
                    [
                        F.pad(piece, (0, 0, longest - piece.shape[1], 0))
                        for piece in states[0, :, : sum(self.lengths)].split(self.lengths, dim=1)
                    ]
                )
                for states in (layer.keys, layer.values)
            )
        self.visible = self._visible(device)

    def reorder(self, samples: Tensor) -> None:
        """Keep these samples [N'] in this order; columns that are padding of all of them go."""
        longest = max(1, *self.lengths)
        self.lengths = [self.lengths[number] for number in samples.tolist()]
        padding = longest - max(1, *self.lengths)
        for layer in self.cache.layers:
            layer.keys, layer.values = (states[:, :, padding:][samples] for states in (layer.keys, layer.values))
        self.visible = self._visible(samples.device)

    def _visible(self, device: torch.device) -> Tensor | None:
        longest = max(1, *self.lengths)
        return visible_keys([length or longest for length in self.lengths], device)


@dataclass
class DecoderState:
    """The decoding state of a decoder: keys and values of N samples.

    Attributes:
        cache: keys and values per layer, each [N, H, T, D], padded on the left to the longest sample.
        lengths: number of keys of each sample, kept on the host.
        positions: [N] position ids of the tokens that come next.
        visible: [N, T] True at keys of a sample, False at padding; None if all samples are equally long.
        memory: keys and values of a memory; None for a decoder without cross-attention.
    """

    cache: DynamicCache
    lengths: list[int]
    positions: Tensor
    visible: Tensor | None
    memory: MemoryState | None = None

    @classmethod
    def of_row(cls, cache: DynamicCache, lengths: Sequence[int], positions: Tensor) -> DecoderState:
        """Build the state after a flat row was read.

        Args:
            cache: keys and values of the row, each [1, H, T, D]; they are laid out by sample in place.
            lengths: number of positions of each sample; they sum to T.
            positions: [1, T] position ids of the row.
        """
        lay_out(cache, lengths)
        ends = torch.tensor(lengths, device=positions.device).cumsum(0) - 1
        return cls(cache, list(lengths), positions[0, ends] + 1, visible_keys(lengths, positions.device))

    def extend(self) -> tuple[Tensor | None, Tensor]:
        """Make room for one more token of every sample.

        Returns:
            The mask [N, 1, 1, T + 1] of the keys that each sample sees, None if every sample sees all keys; and the
            position ids [N, 1] of the new tokens.
        """
        self.lengths = [length + 1 for length in self.lengths]
        positions, self.positions = self.positions[:, None], self.positions + 1
        if self.visible is None:
            return None, positions
        self.visible = F.pad(self.visible, (0, 1), value=True)
        return self.visible[:, None, None], positions

    def reorder(self, samples: Tensor) -> None:
        """Keep these samples [N'] in this order; columns that are padding of all of them go."""
        self.lengths = keep_samples(self.cache, self.lengths, samples)
        self.positions = self.positions[samples]
        self.visible = visible_keys(self.lengths, samples.device)
        if self.memory is not None:
            self.memory.reorder(samples)


@dataclass
class EncoderDecoderState:
    """The decoding state of an encoder-decoder: keys and values of the tokens and sources of N samples.

    Attributes:
        cache: keys and values per layer. Tokens have [N, H, T, D], equally many for every sample; encoded sources have
            [N, H, S, D], padded on the left to the longest source.
        lengths: number of encoded positions of each sample, kept on the host.
        visible: [N, S] True at encoded positions of a sample, False at padding; None if all are equally long.
    """

    cache: EncoderDecoderCache
    lengths: list[int]
    visible: Tensor | None

    @classmethod
    def of_row(cls, cache: EncoderDecoderCache, lengths: Sequence[int], device: torch.device) -> EncoderDecoderState:
        """Build the state after a flat row of sources was encoded and one token of each sample was read.

        Args:
            cache: keys and values of the tokens, [1, H, N, D], and of the sources, [1, H, S, D]; they are laid out by
                sample in place.
            lengths: number of encoded positions of each sample; they sum to S.
            device: device of the model.
        """
        lay_out(cache.self_attention_cache, [1] * len(lengths))
        lay_out(cache.cross_attention_cache, lengths)
        return cls(cache, list(lengths), visible_keys(lengths, device))

    def reorder(self, samples: Tensor) -> None:
        """Keep these samples [N'] in this order; columns that are padding of all of them go."""
        self.cache.self_attention_cache.batch_select_indices(samples)
        self.lengths = keep_samples(self.cache.cross_attention_cache, self.lengths, samples)
        self.visible = visible_keys(self.lengths, samples.device)


def lay_out(cache: DynamicCache, lengths: Sequence[int]) -> None:
    """Lay out the keys and values of a flat row sample by sample, in place."""
    for layer in cache.layers:
        layer.keys, layer.values = (by_sample(states, lengths) for states in (layer.keys, layer.values))


def by_sample(states: Tensor, lengths: Sequence[int]) -> Tensor:
    """Split [1, H, T, D] of a flat row into [N, H, T_max, D], each sample padded with zeros on the left."""
    longest = max(lengths)
    pieces = states[0].split(tuple(lengths), dim=1)
    return torch.stack([F.pad(piece, (0, 0, longest - piece.shape[1], 0)) for piece in pieces])


def keep_samples(cache: DynamicCache, lengths: Sequence[int], samples: Tensor) -> list[int]:
    """Select samples of a cache that is padded on the left, and remove columns that are padding in all of them.

    Args:
        cache: keys and values, changed in place.
        lengths: number of keys of each sample in the cache.
        samples: [N'] numbers of the samples to keep.
    Returns:
        The number of keys of each sample that stays.
    """
    remaining = [lengths[number] for number in samples.tolist()]
    padding = max(lengths) - max(remaining)
    for layer in cache.layers:
        layer.keys, layer.values = (states[:, :, padding:][samples] for states in (layer.keys, layer.values))
    return remaining


def visible_keys(lengths: Sequence[int], device: torch.device) -> Tensor | None:
    """Return [N, T_max], False at the padding on the left and True behind it; None if all samples are equally long."""
    longest = max(lengths)
    if min(lengths) == longest:
        return None
    padding = longest - torch.tensor(lengths, device=device)
    return torch.arange(longest, device=device) >= padding[:, None]
