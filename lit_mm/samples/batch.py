"""The data contract: what workers make and models read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lit_mm.samples.fault import Fault

IGNORE = -100  # the label of a position whose prediction carries no loss


@dataclass(frozen=True)
class Batch:
    """Packed rows of samples. B rows, L positions; views grouped by shape, V_g views in group g.

    Attributes:
        input_ids: [B, L] token ids; any valid id where `visual_mask` is True.
        labels: [B, L] the id each position itself holds where its prediction is learnt, `IGNORE` elsewhere (the model
            shifts by one; the first position of a sample is never learnt).
        segment_ids: [B, L] which sample of the row, from 1; 0 is padding.
        position_ids: [B, L] position inside its own sample.
        visual_mask: [B, L] True where a vector of the bank replaces the text embedding.
        index: [B, L] which vector of the bank; 0 where `visual_mask` is False. The bank is the visual tokens of all
            views, group after group, then the connector's learned vectors.
        views: per shape [V_g, 3, H_g, W_g], normalised pixels. Never empty: a batch without images holds one blank
            view that nothing refers to, so that every rank makes the same encoder calls and gradients are zero, not
            missing.
        num_visual: visual tokens that `views` must make, blank view included; fusion checks it.
        sample_ids: the samples in reading order; a lost one is not among them.
        step_tokens: supervised tokens of the whole optimizer step, over all ranks and micro-batches.
        source_ids: [B, L] number of the data source each position comes from; None where there is but one.
        held: samples that are learnt here, by source; empty where nobody keeps a ledger.
        lost: planned samples whose document or pixels could not be read. Their positions carry no label, their tokens
            stay in `step_tokens`.
        tiles: [V] in the order of `views`, number of each view among the tiles of its picture, row-major from 0; -1 for
            a global view and for the blank one. For a vision encoder that `reads_tiles`.
    """

    input_ids: Tensor
    labels: Tensor
    segment_ids: Tensor
    position_ids: Tensor
    visual_mask: Tensor
    index: Tensor
    views: tuple[Tensor, ...]
    num_visual: int
    sample_ids: tuple[str, ...]
    step_tokens: int = 0
    source_ids: Tensor | None = None
    held: tuple[int, ...] = ()
    lost: tuple[Fault, ...] = ()
    tiles: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """Useful tokens: positions that are not padding."""
        return int((self.segment_ids > 0).sum())

    @property
    def num_supervised(self) -> int:
        return int((self.labels != IGNORE).sum())

    @property
    def num_views(self) -> int:
        return sum(len(group) for group in self.views)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        moved = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved, views=tuple(v.to(device, non_blocking=non_blocking) for v in self.views))

    def pin_memory(self) -> Batch:
        pinned = {name: value.pin_memory() for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **pinned, views=tuple(view.pin_memory() for view in self.views))
