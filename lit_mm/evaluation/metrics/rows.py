"""Common types of all metrics: `Row` is an answer with its references, `Scored` is the result of a metric."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lit_mm.errors import UserError


@dataclass(frozen=True)
class Row:
    """One answer to one question.

    Attributes:
        id: name of the question, unique in its benchmark.
        group: name of the image; intervals are clustered by it, MME pairs its questions by it.
        prediction: text that the model wrote. Metrics of several values read one value per line.
        references: right answers. A text that occurs twice counts as two annotators.
        subset: name of the part of the benchmark, "" if it has none.
        choices: texts of the options A, B, C, ... of a multiple-choice question.
        size: (height, width) of the image in pixels, for boxes; (0, 0) if no metric needs it.
    """

    id: str
    group: str
    prediction: str
    references: tuple[str, ...]
    subset: str = ""
    choices: tuple[str, ...] = ()
    size: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Scored:
    """Result of a metric.

    Attributes:
        figure: value of the whole benchmark, a fraction unless the metric's docstring names another scale.
        scores: score of each row, in the order of the rows. Their mean is `figure` for metrics with `Metric.is_mean`.
            MMBench has one score per question instead, see `ids`.
        details: further figures by name.
        note: tool that computed the figure if it depends on the machine (the tokenizer of captions), else "".
        ids: ids of the rows to which `scores` belong; empty if these are all rows.
    """

    figure: float
    scores: tuple[float, ...]
    details: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    ids: tuple[str, ...] = ()


Function = Callable[[Sequence[Row]], Scored]


def mean_of(scores: Sequence[float], details: Mapping[str, float] | None = None) -> Scored:
    """Return a result whose figure is the mean of the scores."""
    return Scored(sum(scores) / len(scores), tuple(scores), details or {})


def resample(rows: Sequence[Row], indices: Sequence[int]) -> list[Row]:
    """Take the rows at indices, for `bootstrap_figure`; the nth copy of a row gets the suffix "#n" on id and group."""
    copies: Counter[int] = Counter()
    sample = []
    for index in indices:
        row = rows[index]
        suffix = f"#{copies[index]}" if copies[index] else ""
        sample.append(replace(row, id=row.id + suffix, group=row.group + suffix))
        copies[index] += 1
    return sample


def check_rows(rows: Sequence[Row]) -> None:
    """Refuse rows that no metric can score.

    Raises:
        UserError: there are no rows, an id occurs twice, or a row has no reference.
    """
    if not rows:
        raise UserError("a metric needs at least one row, got none. Is the data file of the benchmark empty?")
    ids: set[str] = set()
    for row in rows:
        if row.id in ids:
            raise UserError(f"row {row.id!r} occurs twice; a question is scored once. Gather the answers by id first.")
        if not row.references:
            raise UserError(
                f"row {row.id!r} has no reference, so it cannot be scored. Choose a split with public answers."
            )
        ids.add(row.id)
