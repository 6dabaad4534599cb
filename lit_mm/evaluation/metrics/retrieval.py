"""Retrieval metrics: recall among the first k candidates, and ranking in two steps (Flickr30K, COCO)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lit_mm.errors import UserError
from lit_mm.evaluation.metrics.rows import Row, Scored, mean_of

KS = (1, 5, 10)


def recall(rows: Sequence[Row]) -> Scored:
    """Compute recall@1; `details` has recall@5 and recall@10.

    Recall@k is the share of queries with a reference among their first k candidates. A prediction has the names of
    candidates, the best first, one per line; references are the right candidates.
    """
    hits = {k: [float(not set(row.prediction.split("\n")[:k]).isdisjoint(row.references)) for row in rows] for k in KS}
    return mean_of(hits[1], {f"recall@{k}": sum(hits[k]) / len(rows) for k in KS})


def rank(scores: NDArray[np.floating]) -> NDArray[np.intp]:
    """Sort candidates by score: [Q, C] scores -> [Q, C] candidates, the best first; ties keep the candidates' order."""
    return np.argsort(-scores, axis=1, kind="stable")


def rerank(first: NDArray[np.floating], second: NDArray[np.floating], k: int) -> NDArray[np.intp]:
    """Rank in two steps: the k best candidates of the first scores are reordered by first + second; the rest follow.

    Args:
        first: [Q, C] cheap scores (contrast).
        second: [Q, C] costly scores (matching); only the k best candidates per query are read.
        k: number of candidates to reorder.
    Returns: [Q, C] candidates, the best first.
    Raises:
        UserError: shapes differ, or k is not between 1 and C.
    Source: BLIP train_retrieval.py and LAVIS, which add the matching score to the similarity.
    """
    if first.shape != second.shape or not 1 <= k <= first.shape[1]:
        raise UserError(f"rerank needs two [Q, C] scores and 1 <= k <= C, got {first.shape}, {second.shape} and {k=}")
    order = rank(first)
    head = order[:, :k]
    sums = np.take_along_axis(first, head, 1) + np.take_along_axis(second, head, 1)
    return np.concatenate([np.take_along_axis(head, rank(sums), 1), order[:, k:]], axis=1)
