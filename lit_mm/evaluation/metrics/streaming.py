"""A torchmetrics metric around any metric of `METRICS`, for examinations during training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

import torch
import torchmetrics
from torch import Tensor

from lit_mm.evaluation.metrics.registry import find_metric, score_rows
from lit_mm.evaluation.metrics.rows import Row, Scored


class StreamingMetric(torchmetrics.Metric):
    """Stores rows and gathers them over ranks to score them.

    Rows are stored as byte values in the metric's dtype, because torchmetrics gathers that dtype from a rank without
    rows; every floating dtype holds 0 to 255 exactly. Scoring sorts rows by id, so neither the number of ranks nor the
    number of updates changes the figure. A row that a sampler repeats is scored once.

    Args:
        metric: name of a metric in `METRICS`.
    Raises:
        UserError: no metric has this name.
    """

    full_state_update = False
    encoded: list[Tensor]

    def __init__(self, metric: str) -> None:
        super().__init__()
        find_metric(metric)
        self.metric = metric
        self.add_state("encoded", default=[], dist_reduce_fx="cat")

    def update(self, rows: Sequence[Row]) -> None:
        """Add rows."""
        for row in rows:
            line = json.dumps(asdict(row)).encode() + b"\n"
            self.encoded.append(torch.tensor(list(line), dtype=self.dtype, device=self.device))

    def compute(self) -> Tensor:
        """Return the figure, a scalar in fp64.

        Raises:
            UserError: there are no rows, or one id has two answers.
        """
        return torch.tensor(self.scored().figure, dtype=torch.float64)

    def scored(self) -> Scored:
        """Score the rows that this rank holds at the moment, with scores and details."""
        return score_rows(self.metric, self.rows())

    def rows(self) -> list[Row]:
        """Return the rows sorted by id, without repetitions."""
        encoded = self.encoded if isinstance(self.encoded, list) else [self.encoded]
        lines = {line for part in encoded for line in bytes(part.to(torch.uint8).tolist()).split(b"\n") if line}
        return sorted((_row(line) for line in lines), key=lambda row: row.id)


def _row(line: bytes) -> Row:
    fields = json.loads(line)
    return Row(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})
