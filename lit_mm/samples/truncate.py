"""Truncation of a sample that is too long. It removes the end, and never a part of an image."""

from __future__ import annotations

from dataclasses import replace

from lit_mm.samples.processor import Sample


def cut_point(sample: Sample, *, tokens: int, views: int | None = None) -> int:
    """Count the positions at the start of a sample that fit into the budgets, without cutting a picture.

    A cut inside a picture (its visual tokens and the text of its layout) moves before the picture. The cut also comes
    before the first picture whose views exceed `views`. Example: a sample has 10 tokens of text, a picture of 100
    tokens and 50 tokens of text. A budget of 130 tokens keeps 130; a budget of 60 keeps 10.

    Args:
        sample: sample to cut.
        tokens: budget of tokens.
        views: budget of views; None means no limit.
    """
    stop = min(len(sample), tokens)
    room = float("inf") if views is None else views
    pictures = zip(sample.spans, sample.plans, strict=True)
    for start, end, count in sorted((start, end, len(plan.views)) for (start, end), plan in pictures):
        room -= count
        if start >= stop:
            break
        if end > stop or room < 0:
            return start
    return stop


def truncate(sample: Sample, *, tokens: int, views: int | None = None) -> Sample:
    """Cut a sample at its `cut_point`; return the sample itself if it fits.

    Labels do not change: a cut answer is learnt up to the cut, without an eos. The result may be empty, or have no
    label.

    Args:
        sample: sample to truncate.
        tokens, views: budgets, see `cut_point`.
    """
    stop = cut_point(sample, tokens=tokens, views=views)
    if stop == len(sample):
        return sample
    pictures = sum(end <= stop for _, end in sample.spans)
    assert all(end <= stop for _, end in sample.spans[:pictures]), "a prompt shows its pictures in their order"
    return replace(
        sample,
        input_ids=sample.input_ids[:stop],
        labels=sample.labels[:stop],
        index=sample.index[:stop],
        plans=sample.plans[:pictures],
        tokens_per_view=sample.tokens_per_view[: sum(len(plan.views) for plan in sample.plans[:pictures])],
        spans=sample.spans[:pictures],
    )
