"""Collation of samples to a batch. It runs in the workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from lit_mm.samples.batch import IGNORE, Batch, Target, Texts, Views
from lit_mm.samples.pixels import normalised
from lit_mm.samples.processor import TEXT, Processor, Sample, image_number
from lit_mm.samples.target import split_answer


def collate(
    samples: Sequence[Sample],
    processor: Processor,
    *,
    units: Mapping[str, int] | None = None,
    views: Sequence[Sequence[Tensor]] | None = None,
    sources: Sequence[int] | None = None,
) -> Batch:
    """Join samples in one row, group their views by shape and find the place of every visual vector and label.

    If there is no sample (all samples of a micro-batch are lost), the row holds one padding token without a label.

    Args:
        samples: samples of the micro-batch, in order.
        processor: processor that made the samples.
        units: unit -> number of units in the whole optimizer step; None means no units.
        views: views of every sample, see `Processor.crops`; None means that `processor` reads them.
        sources: number of the data source of every sample; None if there is only one source.
    Raises:
        UserError: see `split_answer`, for an encoder-decoder.
    """
    grouped, first_of_view, second = None, [], None
    if processor.token_grid is not None:
        pixels = views if views is not None else [processor.views(sample) for sample in samples]
        grouped, first_of_view = group_views(samples, processor, pixels)
        second = group_second_views(samples, processor, pixels)
    pad = np.array([processor.tokenizer.pad_id], dtype=np.int64)
    ids, positions, visual, bank, routed = [], [], [], [], []
    places, labels, source_ids, answers = [], [], [], []
    start = answer_start = view = 0
    for number, sample in enumerate(samples):
        length = len(sample) if not processor.writes_target else split_answer(sample)
        index = sample.index[:length]
        ids.append(sample.input_ids[:length])
        positions.append(processor.layout.positions(index))
        is_visual = index != TEXT
        visual.append(start + np.flatnonzero(is_visual))
        bank.append(_resolve(sample, first_of_view[view:], grouped.tokens if grouped else 0)[:length][is_visual])
        if (places_routed := processor.layout.routed(index)) is not None:
            routed.append(start + places_routed)
        if processor.writes_target:
            answer = sample.input_ids[length:]
            answers.append(answer)
            learnt, offset = np.arange(len(answer)), answer_start
            answer_start += len(answer)
        else:
            answer = sample.labels[1:]
            learnt, offset = np.flatnonzero(answer != IGNORE), start  # place i predicts token i + 1
        if not sample.lost:
            places.append(offset + learnt)
            labels.append(answer[learnt])
            source_ids.append(np.full(len(learnt), sources[number] if sources is not None else 0))
        view += len(sample.tokens_per_view)
        start += length
    if not samples:
        ids, positions, answers = [pad], [np.zeros(1, dtype=np.int64)], [pad]
    return Batch(
        ids=_tensor(ids)[None],
        lengths=tuple(len(segment) for segment in ids),
        positions=_tensor(positions)[None],
        visual=_tensor(visual),
        bank=_tensor(bank),
        supervised=_tensor(places),
        labels=_tensor(labels),
        sample_ids=tuple(sample.document.id for sample in samples),
        views=grouped,
        target=Target(_tensor(answers)[None], tuple(map(len, answers))) if processor.writes_target else None,
        routed=_tensor(routed) if routed else None,
        units=dict(units or {}),
        sources=None if sources is None else _tensor(source_ids),
        images=torch.tensor([image_number(of) for of in samples] or [-1]) if processor.image_ids else None,
        second_views=second,
        texts=None if processor.reading is None else pad_texts([processor.reading(of.document) for of in samples]),
        valid=None if processor.reading is None else torch.tensor([not of.lost for of in samples] or [False]),
        num_images=sum(len(sample.plans) for sample in samples if not sample.lost),
    )


def pad_texts(rows: Sequence[np.ndarray]) -> Texts:
    """Pad token ids on the right to [N, L]. Without rows the result is one text of padding alone."""
    lengths = np.array([len(row) for row in rows] or [0])
    mask = np.arange(max(lengths.max(), 1)) < lengths[:, None]
    ids = np.zeros(mask.shape, dtype=np.int64)
    ids[mask] = np.concatenate([np.zeros(0, dtype=np.int64), *rows])
    return Texts(torch.from_numpy(ids), torch.from_numpy(mask))


def group_views(
    samples: Sequence[Sample], processor: Processor, read: Sequence[Sequence[Tensor]]
) -> tuple[Views, list[int]]:
    """Group views by shape, and find the place in the bank of the first visual token of every view, in reading order.

    If the samples have no view, the result holds a blank view of the size that the tiling gives to a small square
    image.

    Args:
        samples: samples of the micro-batch, in order.
        processor: processor that made the samples.
        read: views of every sample, see `Processor.crops`.
    """
    read = [views[: len(sample.tokens_per_view)] for sample, views in zip(samples, read, strict=True)]
    pixels = [view for views in read for view in views]
    counts = [count for sample in samples for count in sample.tokens_per_view]
    tiles = [tile for sample in samples for plan in sample.plans for tile in plan.tile_numbers]
    owners = [number for number, sample in enumerate(samples) for _ in sample.tokens_per_view]
    if not pixels:
        height, width = processor.tiling(64, 64).views[0].size
        rows, columns = processor.token_grid((height, width))
        pixels, counts, tiles, owners = [torch.zeros(3, height, width)], [rows * columns], [-1], [-1]
    groups = by_shape(pixels)
    order = [number for members in groups for number in members]
    first, total = [0] * len(pixels), 0
    for number in order:
        first[number] = total
        total += counts[number]
    scaling = scaling_of(pixels, processor)
    grouped = Views(
        groups=tuple(stack_views([pixels[number] for number in members], scaling) for members in groups),
        owners=torch.tensor([owners[number] for number in order]),
        tiles=torch.tensor([tiles[number] for number in order]),
        tokens=total,
        scaling=scaling,
        counts=counts_of(read),
    )
    return grouped, first


def group_second_views(
    samples: Sequence[Sample], processor: Processor, read: Sequence[Sequence[Tensor]]
) -> Views | None:
    """Group the views of the second vision encoder by shape; None if the tiling makes none.

    If the samples have no view, the result holds a blank view, as in `group_views`.

    Args:
        samples, processor, read: see `group_views`.
    """
    read = [views[len(sample.tokens_per_view) :] for sample, views in zip(samples, read, strict=True)]
    pixels = [view for views in read for view in views]
    owners = [number for number, views in enumerate(read) for _ in views]
    if not pixels:
        planned = processor.tiling(64, 64).second
        if not planned:
            return None
        pixels, owners = [torch.zeros(3, *planned[0].size)], [-1]
    groups, scaling = by_shape(pixels), scaling_of(pixels, processor)
    return Views(
        groups=tuple(stack_views([pixels[number] for number in members], scaling) for members in groups),
        owners=torch.tensor([owners[number] for members in groups for number in members]),
        tiles=torch.full((len(pixels),), -1),
        tokens=0,
        scaling=scaling,
        counts=counts_of(read),
    )


def by_shape(pixels: Sequence[Tensor]) -> list[list[int]]:
    """Return the numbers of the views of each shape; shapes are in the order of their first view."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, view in enumerate(pixels):
        groups.setdefault(tuple(view.shape), []).append(number)
    return list(groups.values())


def scaling_of(pixels: Sequence[Tensor], processor: Processor) -> Tensor | None:
    """Return the scaling of `Views`; None if no view is uint8."""
    return processor.normalise.scaling() if any(view.dtype == torch.uint8 for view in pixels) else None


def counts_of(read: Sequence[Sequence[Tensor]]) -> tuple[int, ...]:
    """Return the number of views of every sample; a row without samples holds one padding token, which has none."""
    return tuple(map(len, read)) or (0,)


def stack_views(pixels: Sequence[Tensor], scaling: Tensor | None) -> Tensor:
    """Stack views of one shape. If some are normalised (blank views of lost samples), uint8 ones are normalised too.

    Args:
        scaling: see `Views`.
    """
    if scaling is not None and len({view.dtype for view in pixels}) > 1:
        pixels = [normalised(view, scaling) for view in pixels]
    return torch.stack(list(pixels))


def _tensor(pieces: Sequence[np.ndarray]) -> Tensor:
    """Join pieces to one int64 tensor, which is empty if there are no pieces."""
    return torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.int64), *pieces]).astype(np.int64))


def _resolve(sample: Sample, first_of_view: Sequence[int], num_visual: int) -> np.ndarray:
    """Convert the index of a sample to places in the batch's bank, 0 at text positions."""
    place = np.concatenate(
        [first + np.arange(n) for first, n in zip(first_of_view, sample.tokens_per_view, strict=False)]
        or [np.zeros(0, dtype=np.int64)]
    )
    resolved = np.zeros(len(sample), dtype=np.int64)
    visual, learned = sample.index >= 0, (sample.index < 0) & (sample.index != TEXT)
    resolved[visual] = place[sample.index[visual]]
    resolved[learned] = num_visual - sample.index[learned] - 1
    return resolved
