"""The batch, which workers build and models read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from lit_mm.samples.fault import Fault
from lit_mm.samples.pixels import normalised

IGNORE = -100  # label of a position whose prediction carries no loss, in samples
TOKENS = "tokens"  # unit of a loss that sums over supervised tokens
PAIRS = "pairs"  # unit of a loss that sums over samples
Moved = TypeVar("Moved", "Views", "Target", "Texts", "Batch")


@dataclass(frozen=True)
class Views:
    """The views of one vision encoder, grouped by shape. V views in all, V_g in group g.

    Attributes:
        groups: [V_g, 3, H_g, W_g] pixels per shape: uint8, which `normalised` converts on the device of the encoder, or
            normalised already. There is at least one view: a batch without pictures holds an unused blank view, so that
            every rank makes the same encoder calls and gradients are zero, not missing.
        owners: [V] number of the sample that shows the view, from 0 in the order of the batch; -1 for the blank view.
        tiles: [V] number of the view among the tiles of its picture, row-major from 0; -1 for a global view and for the
            blank view.
        tokens: number of visual tokens of all views, counted by the processor and checked by the model.
        scaling: [2, 3, 1, 1] gain and shift that normalise uint8 pixels; None: no view is uint8.
        counts: number of views of each sample in the order of the batch, on the host; 0 for the blank view.
    """

    groups: tuple[Tensor, ...]
    owners: Tensor
    tiles: Tensor
    tokens: int
    scaling: Tensor | None = None
    counts: tuple[int, ...] = ()

    def __len__(self) -> int:
        return sum(len(group) for group in self.groups)

    def normalised(self) -> tuple[Tensor, ...]:
        """Return per shape the [V_g, 3, H_g, W_g] pixels that the encoder reads."""
        return self.groups if self.scaling is None else tuple(normalised(group, self.scaling) for group in self.groups)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Views:
        return _mapped(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Views:
        return _mapped(self, Tensor.pin_memory)


@dataclass(frozen=True)
class Target:
    """The answers that an encoder-decoder writes, one segment per sample in the order of the batch.

    Attributes:
        ids: [1, T] token ids; the decoder learns to predict all of them.
        lengths: number of tokens of each segment; they sum to T.
    """

    ids: Tensor
    lengths: tuple[int, ...]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Target:
        return _mapped(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Target:
        return _mapped(self, Tensor.pin_memory)


@dataclass(frozen=True)
class Texts:
    """Second texts in another vocabulary, one per sample in the order of the batch, padded on the right.

    Attributes:
        ids: [N, L] token ids, 0 at padding.
        mask: [N, L] True at text, False at padding.
    """

    ids: Tensor
    mask: Tensor

    def of(self, owners: Tensor) -> Texts:
        """Select the texts of samples by number [V]; the number -1 gets a text of padding alone."""
        rows = owners.clamp(min=0)
        return Texts(self.ids[rows], self.mask[rows] & (owners >= 0)[:, None])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Texts:
        return _mapped(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Texts:
        return _mapped(self, Tensor.pin_memory)


@dataclass(frozen=True)
class Batch:
    """Samples one after the other in a *flat row* of T positions, without padding.

    Attributes:
        ids: [1, T] token ids; the padding id at visual positions.
        lengths: number of positions of each sample in order, on the host; they sum to T. Samples do not see each other.
        positions: [1, T] position id of each token inside its sample.
        visual: [K] places in the row, ascending, where a vector of the bank replaces the text embedding.
        bank: [K] number of the vector for each place in `visual`. The bank holds the visual tokens of all views, group
            after group, then the connector's learned vectors.
        supervised: [S] places whose hidden state predicts a supervised token: place i predicts token i + 1 of the same
            sample. With a `target` these are places in the target's row, where place i predicts token i.
        labels: [S] token id that each supervised place predicts.
        sample_ids: ids of the samples with supervision, in order; lost samples are left out.
        views: views of the samples; None for a language model alone.
        target: answers for an encoder-decoder; None for a decoder, whose answers stand in `ids`.
        routed: [R] places that routed linears treat as visual; None means the places in `visual`.
        units: unit -> number of units in the whole optimizer step, over all ranks and micro-batches. A loss is divided
            by the number of its unit; "tokens" counts supervised tokens, "pairs" samples.
        sources: [S] number of the data source of each supervised place; None if there is only one source.
        num_by_source: number of samples per source in this micro-batch, without lost samples; () without a ledger.
        texts: second texts of the samples, lost ones included; None without a `Reading`.
        valid: [N] False at lost samples, for objectives that compare samples; None without a `Reading`.
        images: [N] number of the image of every sample, the same for samples of one image on any rank, -1 at lost
            samples; None if the processor does not number images.
        lost: planned samples whose document or pixels could not be read. Their positions carry no label, but their
            tokens are counted in `units`.
        second_views: views of the second vision encoder, which make no visual tokens; None if there is one encoder.
        num_images: number of pictures of the samples, without lost samples.
    """

    ids: Tensor
    lengths: tuple[int, ...]
    positions: Tensor
    visual: Tensor
    bank: Tensor
    supervised: Tensor
    labels: Tensor
    sample_ids: tuple[str, ...]
    views: Views | None = None
    target: Target | None = None
    routed: Tensor | None = None
    units: Mapping[str, int] = field(default_factory=dict)
    sources: Tensor | None = None
    num_by_source: tuple[int, ...] = ()
    lost: tuple[Fault, ...] = ()
    second_views: Views | None = None
    images: Tensor | None = None
    texts: Texts | None = None
    valid: Tensor | None = None
    num_images: int = 0

    @property
    def num_tokens(self) -> int:
        """Number of positions in the row and in the target's row."""
        return sum(self.lengths) + (sum(self.target.lengths) if self.target else 0)

    @property
    def num_supervised(self) -> int:
        return len(self.labels)

    @property
    def num_views(self) -> int:
        return len(self.views) if self.views is not None else 0

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return _mapped(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        return _mapped(self, Tensor.pin_memory)


def _mapped(data: Moved, change: Any) -> Moved:
    """Return a copy with `change` applied to every tensor, also inside groups, views, target and texts."""
    changes: dict[str, Any] = {}
    for name in (entry.name for entry in fields(data)):
        value = getattr(data, name)
        if isinstance(value, Tensor):
            changes[name] = change(value)
        elif isinstance(value, Views | Target | Texts):
            changes[name] = _mapped(value, change)
        elif name == "groups":
            changes[name] = tuple(change(group) for group in value)
    return replace(data, **changes)
