"""Truncation: a sample that is too long loses its end, never a part of an image."""

from __future__ import annotations

from dataclasses import replace

from lit_mm.samples.processor import Sample


def cut_point(sample: Sample, *, tokens: int, views: int | None = None) -> int:
    """Positions of `sample` to keep: as many as fit into `tokens`, and no picture in part.

    A cut that would fall inside a picture (its visual tokens and the text that its layout puts between them) falls
    before it, and so does one before the first picture whose views no longer fit into `views`. Example: 10 tokens of
    text, a picture of 100, 50 of text; 130 tokens keep 130, 60 tokens keep 10.
    """
    stop = min(len(sample), tokens)
    room = float("inf") if views is None else views
    shown = sorted((start, end, len(plan.views)) for (start, end), plan in zip(sample.spans, sample.plans, strict=True))
    for start, end, its_views in shown:
        room -= its_views
        if start >= stop:
            break
        if end > stop or room < 0:
            return start
    return stop


def truncate(sample: Sample, *, tokens: int, views: int | None = None) -> Sample:
    """The sample up to its `cut_point`; itself where it fits.

    What is learnt stays what it was: an answer that is cut is learnt as far as it goes, and nothing then says that it
    ends there (no eos is put in its place). The result may be empty, or have nothing left to learn.

    Args:
        tokens, views: the budgets.
    """
    stop = cut_point(sample, tokens=tokens, views=views)
    if stop == len(sample):
        return sample
    kept = sum(end <= stop for _, end in sample.spans)
    assert all(end <= stop for _, end in sample.spans[:kept]), "a prompt shows its pictures in their order"
    return replace(
        sample,
        input_ids=sample.input_ids[:stop],
        labels=sample.labels[:stop],
        index=sample.index[:stop],
        plans=sample.plans[:kept],
        tokens_per_view=sample.tokens_per_view[: sum(len(plan.views) for plan in sample.plans[:kept])],
        spans=sample.spans[:kept],
    )
