"""Samples and batches: a document laid out as token ids, labels and views; several collated into one batch."""

from lit_mm.samples.layout import (
    BaseThenUnpaddedRows,
    BetweenFlags,
    GlobalThenTiles,
    InOrder,
    Layout,
    RowsThenNewlines,
    SharedPosition,
    SlicesThenOverview,
)

__all__ = [
    "BaseThenUnpaddedRows",
    "BetweenFlags",
    "GlobalThenTiles",
    "InOrder",
    "Layout",
    "RowsThenNewlines",
    "SharedPosition",
    "SlicesThenOverview",
]
