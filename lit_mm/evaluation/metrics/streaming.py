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
    """Holds rows until they are scored, gathered over ranks.

    Rows are held as the values of their bytes in the metric's dtype, which torchmetrics gives to a rank without rows
    when it gathers tensors; every floating dtype holds 0 to 255 exactly. Scoring sorts them by id: neither the
    number of ranks nor of updates changes the figure. A row that a sampler repeats is scored once.

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
        """The figure, a scalar in fp64.

        Raises:
            UserError: there are no rows, or one id has two answers.
        """
        return torch.tensor(self.scored().figure, dtype=torch.float64)

    def scored(self) -> Scored:
        """The figure with scores and details, of the rows that this rank holds at the moment."""
        return score_rows(self.metric, self.rows())

    def rows(self) -> list[Row]:
        """Rows sorted by id, each once."""
        encoded = self.encoded if isinstance(self.encoded, list) else [self.encoded]
        lines = {line for part in encoded for line in bytes(part.to(torch.uint8).tolist()).split(b"\n") if line}
        return sorted((_row(line) for line in lines), key=lambda row: row.id)


def _row(line: bytes) -> Row:
    fields = json.loads(line)
    return Row(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})
