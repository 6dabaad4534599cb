"""Rows of samples -> Batch. Runs in the workers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lit_mm.samples.batch import IGNORE, Batch
from lit_mm.samples.processor import TEXT, Processor, Sample


def collate(
    rows: Sequence[Sequence[Sample]],
    processor: Processor,
    *,
    step_tokens: int = 0,
    left_pad: bool = False,
    multiple: int = 8,
    views: Sequence[Sequence[Tensor]] | None = None,
    sources: Sequence[Sequence[int]] | None = None,
) -> Batch:
    """Pack samples into rows, group their views by shape and resolve the index of every visual position.

    Args:
        rows: the samples that share each row, in order.
        step_tokens: supervised tokens of the whole optimizer step.
        left_pad: padding in front, so that the last position of every row is its sample's last; for generation.
        multiple: the row length is rounded up to a multiple of this.
        views: the views of every sample, in reading order, where they have been read already.
        sources: number of the data source of every sample, by row; None where there is but one source.
    """
    samples = [sample for row in rows for sample in row]
    length = max(1, *(sum(len(sample) for sample in row) for row in rows))  # all samples of all rows may be lost
    length = -(-length // multiple) * multiple
    views, first_of_view, num_visual, tiles = group_views(samples, processor, views)

    shape = (len(rows), length)
    input_ids = np.full(shape, processor.tokenizer.pad_id, dtype=np.int64)
    labels = np.full(shape, IGNORE, dtype=np.int64)
    segments, positions, index, source_ids = (np.zeros(shape, dtype=np.int64) for _ in range(4))
    visual = np.zeros(shape, dtype=bool)
    view = 0
    for r, row in enumerate(rows):
        start = length - sum(len(sample) for sample in row) if left_pad else 0
        for number, sample in enumerate(row, start=1):
            span = slice(start, start + len(sample))
            input_ids[r, span] = sample.input_ids
            labels[r, span] = sample.labels
            labels[r, start] = IGNORE  # nothing of its own sample predicts a first position
            segments[r, span] = number
            positions[r, span] = np.arange(len(sample))
            visual[r, span] = sample.index != TEXT
            index[r, span] = _resolve(sample, first_of_view[view:], num_visual)
            if sources is not None:
                source_ids[r, span] = sources[r][number - 1]
            view += len(sample.tokens_per_view)
            start += len(sample)
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        labels=torch.from_numpy(labels),
        segment_ids=torch.from_numpy(segments),
        position_ids=torch.from_numpy(positions),
        visual_mask=torch.from_numpy(visual),
        index=torch.from_numpy(index),
        views=views,
        num_visual=num_visual,
        sample_ids=tuple(sample.document.id for sample in samples),
        step_tokens=step_tokens,
        source_ids=None if sources is None else torch.from_numpy(source_ids),
        tiles=torch.tensor(tiles, dtype=torch.int64),
    )


def group_views(
    samples: Sequence[Sample], processor: Processor, read: Sequence[Sequence[Tensor]] | None = None
) -> tuple[tuple[Tensor, ...], list[int], int, list[int]]:
    """The views by shape, the place in the bank of every view's first token, all visual tokens, and `Batch.tiles`.

    Without any view there is one blank one of the size that the family gives to a small square image; a language model
    alone has none.

    Args:
        read: the views of every sample, where they have been read already.
    """
    if processor.token_grid is None:
        return (), [], 0, []
    read = read if read is not None else [processor.views(sample) for sample in samples]
    views = [
        (view, n)
        for sample, own in zip(samples, read, strict=True)
        for view, n in zip(own, sample.tokens_per_view, strict=True)
    ]
    tiles = [tile for sample in samples for plan in sample.plans for tile in plan.tile_numbers]
    if not views:
        height, width = processor.tiling(64, 64).views[0].size
        rows, columns = processor.token_grid((height, width))
        views, tiles = [(torch.zeros(3, height, width), rows * columns)], [-1]
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, (pixels, _) in enumerate(views):
        groups.setdefault(tuple(pixels.shape), []).append(number)
    first = [0] * len(views)
    total = 0
    for members in groups.values():
        for number in members:
            first[number] = total
            total += views[number][1]
    grouped = tuple(torch.stack([views[n][0] for n in members]) for members in groups.values())
    return grouped, first, total, [tiles[n] for members in groups.values() for n in members]


def _resolve(sample: Sample, first_of_view: Sequence[int], num_visual: int) -> np.ndarray:
    """The sample's own index -> places in the batch's bank (0 at text)."""
    place = np.concatenate(
        [first + np.arange(n) for first, n in zip(first_of_view, sample.tokens_per_view, strict=False)]
        or [np.zeros(0, dtype=np.int64)]
    )
    resolved = np.zeros(len(sample), dtype=np.int64)
    ours, learned = sample.index >= 0, (sample.index < 0) & (sample.index != TEXT)
    resolved[ours] = place[sample.index[ours]]
    resolved[learned] = num_visual - sample.index[learned] - 1
    return resolved
