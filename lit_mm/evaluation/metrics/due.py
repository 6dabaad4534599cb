"""Micro F1 of extracted keys and values over the corpus (DeepForm, Kleister Charity, TabFact)."""

from __future__ import annotations

from collections.abc import Sequence

from lit_mm.evaluation.metrics.rows import Row, Scored

Pair = tuple[str, frozenset[str]]  # key, value and its variants


def due_f1(rows: Sequence[Row]) -> Scored:
    """Compute F1 over all upper-cased (key, value) pairs of the corpus. A row is a document; its score is its own F1.

    A prediction has one pair per line, "key<TAB>value". A reference is "key<TAB>value" or
    "key<TAB>value<TAB>variant<TAB>...". White space counts. `details` has precision and recall.
    Source: DUE due_evaluator/scorers/fscorer.py with `ignore_case`.
    """
    counts = [_count([_pair(line) for line in row.prediction.split("\n") if line], row.references) for row in rows]
    hits, predicted, expected = (sum(column) for column in zip(*counts, strict=True))
    details = {
        "precision": hits / predicted if predicted else 0.0,
        "recall": hits / expected if expected else 0.0,
    }
    return Scored(_f1(hits, predicted, expected), tuple(_f1(*count) for count in counts), details)


def _pair(line: str) -> Pair:
    key, *values = line.upper().split("\t")
    return key, frozenset(values)


def _count(predicted: list[Pair], references: Sequence[str]) -> tuple[int, int, int]:
    """Count right, predicted and reference pairs; each reference is used once."""
    unused, hits = [_pair(line) for line in references], 0
    for key, values in predicted:
        match = next((pair for pair in unused if pair[0] == key and pair[1] & values), None)
        if match is not None:
            unused.remove(match)
            hits += 1
    return hits, len(predicted), len(references)


def _f1(hits: int, predicted: int, expected: int) -> float:
    return 2 * hits / (predicted + expected) if predicted + expected else 0.0
