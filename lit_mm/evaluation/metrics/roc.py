"""The area under the ROC curve, for answers that are scores of "yes"."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torchmetrics.functional.classification import binary_auroc

from lit_mm.errors import UserError
from lit_mm.evaluation.metrics.rows import Row, Scored


def roc_auc(rows: Sequence[Row]) -> Scored:
    """Compute the probability that a row of "yes" has a higher score than a row of "no"; a tie counts half.

    A prediction is a number: log-odds of "yes", see `lit_mm.evaluation.benchmarks.benchmark.Candidates.odds_of`.
    Without rows of both labels the area is 0.5, and the note says so. `details` has the accuracy of "yes" above 0 and
    the share of rows of "yes".

    The mean of the scores is the figure. Scores are linearised, so that the variance of their mean is that of the area:
    figure + (placement - figure) / share of the row's label, where the placement of a row is the share of rows of the
    other label that it is ordered rightly against.
    Source: the area by torchmetrics; DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988), for the placements.

    Raises:
        UserError: a prediction is no number, or a reference is neither yes nor no.
    """
    values = np.array([_number(row) for row in rows])
    labels = np.array([_is_yes(row) for row in rows])
    details = {"accuracy": float(((values > 0) == labels).mean()), "share_of_yes": float(labels.mean())}
    if labels.all() or not labels.any():
        note = f"all {len(rows)} references are {'yes' if labels.all() else 'no'}, so the area under the curve is 0.5"
        return Scored(0.5, (0.5,) * len(rows), details, note)
    # Ranks keep the order, and torchmetrics takes numbers from 0 to 1 as they are
    ranks = np.unique(values, return_inverse=True)[1]
    scaled = torch.from_numpy((1.0 + ranks) / (1 + ranks.max()))
    figure = float(binary_auroc(scaled, torch.from_numpy(labels).long()))
    placements = np.where(labels, _share_below(values, values[~labels]), 1 - _share_below(values, values[labels]))
    shares = np.where(labels, labels.mean(), 1 - labels.mean())
    return Scored(figure, tuple((figure + (placements - figure) / shares).tolist()), details)


def _share_below(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return for each value the share of `others` that is smaller; equal ones count half."""
    others = np.sort(others)
    below, not_above = (np.searchsorted(others, values, side=side) for side in ("left", "right"))
    return (below + not_above) / (2 * len(others))


def _number(row: Row) -> float:
    try:
        value = float(row.prediction)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise UserError(
            f"row {row.id!r}: the area under the ROC curve needs a number as prediction, got {row.prediction!r}. Rank "
            "candidates with `odds_of`"
        )
    return value


def _is_yes(row: Row) -> bool:
    label = row.references[0].strip().lower()
    if label not in ("yes", "no"):
        raise UserError(f"row {row.id!r}: the reference of a score of yes is yes or no, got {label!r}")
    return label == "yes"
