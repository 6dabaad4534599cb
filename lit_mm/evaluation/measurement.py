"""Figures of benchmarks: rows from answers, the figure with its interval, and comparisons of two models."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lit_mm.errors import UserError
from lit_mm.evaluation.answering import caption_names
from lit_mm.evaluation.benchmarks.benchmark import Benchmark, Procedure, Published
from lit_mm.evaluation.benchmarks.question import Question
from lit_mm.evaluation.metrics import Row, Scored, find_metric, resample, score_rows
from lit_mm.evaluation.postprocessing import postprocess
from lit_mm.evaluation.statistics import (
    Comparison,
    Interval,
    bootstrap_figure,
    bootstrap_interval,
    graded_questions_needed,
    holm,
    mcnemar,
    paired_bootstrap,
    questions_needed,
)

RESAMPLES = 500  # of figures that are scored anew on every resample, which takes long


@dataclass(frozen=True)
class Measurement:
    """The figure of a model on a benchmark.

    Attributes:
        metric: name of the metric, with "/" and the detail that is reported.
        figure: figure in the unit that papers print.
        interval: 95 % interval of the figure, clustered by image.
        count: number of scored questions.
        details: further figures, unscaled. A subset's figure has the name of the subset.
        scores: id -> score of each question, unscaled.
        groups: id -> image.
        note: tool that computed the figure, if it depends on the machine.
    """

    metric: str
    figure: float
    interval: Interval
    count: int
    details: Mapping[str, float]
    scores: Mapping[str, float]
    groups: Mapping[str, str]
    note: str = ""


@dataclass(frozen=True)
class Contrast:
    """Two models on one benchmark.

    Attributes:
        benchmark: name of the benchmark and split.
        comparison: difference b - a of the mean scores, its interval and the p value.
        test: name of the test that gave the p value.
        adjusted: p value adjusted by Holm over all contrasts of the command.
        needed: number of questions that tell this difference, or a given one, with a power of 80 %; None if the models
            are equally good, or if no scores differ.
    """

    benchmark: str
    comparison: Comparison
    test: str
    adjusted: float
    needed: int | None


def rows_of(questions: Sequence[Question], answers: Mapping[str, str], procedure: Procedure) -> list[Row]:
    """Build the rows that a metric scores.

    Raises:
        UserError: a question has no answer in `answers`.
    """
    if procedure.answering == "retrieval":
        return retrieval_rows(questions, answers)
    missing = [question.id for question in questions if question.id not in answers]
    if missing:
        raise UserError(f"{len(missing)} of {len(questions)} questions have no answer, the first is {missing[0]!r}")
    return [
        _row(question, postprocess(answers[question.id], procedure.postprocessing), procedure) for question in questions
    ]


def _row(question: Question, answer: str, procedure: Procedure) -> Row:
    references = question.references
    if procedure.gold == "texts":
        references = question.option_texts()
    elif procedure.gold == "pairs":
        # Tabs and line breaks part values and pairs, so those of a text become spaces
        answer, *references = [re.sub(r"[\t\n]", " ", text) for text in (answer, *references)]
        answer = f"\t{answer}" if answer else ""
        references = ("\t" + "\t".join(references),)
    return Row(question.id, question.group, answer, references, question.subset, question.choices, question.size)


def check_questions(questions: Sequence[Question], procedure: Procedure, name: str) -> None:
    """Score a wrong answer to every question, so that a question that cannot be scored shows before one is asked.

    Args:
        questions: questions with public answers.
        procedure: procedure whose metric scores them. Retrieval, whose rows need rankings, is not checked.
        name: name of the benchmark, for messages.
    Raises:
        UserError: see `score`.
    """
    if procedure.answering == "retrieval":
        return
    try:
        score(procedure, rows_of(questions, {question.id: "0" for question in questions}, procedure))
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def retrieval_rows(questions: Sequence[Question], rankings: Mapping[str, str]) -> list[Row]:
    """Build the rows of retrieval in both directions, from rankings as `rank_all` writes them."""
    rows = []
    for question in questions:
        names = caption_names(question)
        ranking = rankings[f"image/{question.id}"]
        rows.append(Row(f"image/{question.id}", question.group, ranking, tuple(names), "image_to_text"))
        for name in names:
            ranking = rankings[f"caption/{name}"]
            rows.append(Row(f"caption/{name}", question.group, ranking, (question.id,), "text_to_image"))
    return rows


def measure(benchmark: Benchmark, procedure: Procedure, rows: Sequence[Row], *, seed: int = 0) -> Measurement:
    """Score rows and bootstrap the interval.

    Args:
        benchmark: benchmark, whose scale is applied.
        procedure: procedure, whose metric is used.
        rows: rows with references.
        seed: seed of the bootstrap.
    Raises:
        UserError: the rows cannot be scored, or the metric lacks the detail that the procedure reports.
    """
    scored = score(procedure, rows)
    by_id = {row.id: row.group for row in rows}
    ids = scored.ids or tuple(by_id)
    groups = [by_id[id] for id in ids]
    if find_metric(procedure.metric).is_mean and procedure.average == "rows" and not procedure.detail:
        interval = bootstrap_interval(scored.scores, groups, seed=seed)
    else:
        interval = bootstrap_figure(
            lambda indices: score(procedure, resample(rows, indices)).figure,
            [row.group for row in rows],
            seed=seed,
            resamples=RESAMPLES,
        )
    return Measurement(
        metric=f"{procedure.metric}/{procedure.detail}" if procedure.detail else procedure.metric,
        figure=scored.figure * benchmark.scale,
        interval=Interval(interval.low * benchmark.scale, interval.high * benchmark.scale),
        count=len(ids),
        details=subset_means(procedure, rows, ids, scored.scores) | dict(scored.details),
        scores=dict(zip(ids, scored.scores, strict=True)),
        groups=dict(zip(ids, groups, strict=True)),
        note=scored.note,
    )


def subset_means(
    procedure: Procedure, rows: Sequence[Row], ids: Sequence[str], scores: Sequence[float]
) -> dict[str, float]:
    """Return the mean score of each subset, if the figure is a mean of scores and there are several subsets."""
    subsets = {row.id: row.subset for row in rows}
    if not find_metric(procedure.metric).is_mean or len(set(subsets.values())) < 2:
        return {}
    by_subset: dict[str, list[float]] = {}
    for id, value in zip(ids, scores, strict=True):
        by_subset.setdefault(subsets[id], []).append(value)
    return {subset: sum(values) / len(values) for subset, values in by_subset.items()}


def score(procedure: Procedure, rows: Sequence[Row]) -> Scored:
    """Score rows with the metric of a procedure; `figure` is the figure that it reports, and `details` has subsets.

    Raises:
        UserError: see `measure`.
    """
    scored = score_rows(procedure.metric, rows)
    by_subset: dict[str, list[Row]] = {}
    for row in rows:
        by_subset.setdefault(row.subset, []).append(row)
    details = dict(scored.details)
    figure = scored.figure
    if procedure.detail:
        if procedure.detail not in details:
            raise UserError(f"metric {procedure.metric!r} has no figure {procedure.detail!r}, only {sorted(details)}")
        figure = details[procedure.detail]
    if procedure.average == "subsets":
        parts = {subset: score_rows(procedure.metric, part) for subset, part in by_subset.items()}
        for subset, part in parts.items():
            details |= {subset: part.figure} | {f"{subset}/{name}": value for name, value in part.details.items()}
        figure = sum(part.figure for part in parts.values()) / len(parts)
    return replace(scored, figure=figure, details=details)


def difference_to(measurement: Measurement, published: Published, split: str, scale: float) -> float | None:
    """Return measured - published, or None if the two are not comparable.

    Only figures that were read in a public file count, and only those of the same split and metric, which may be a
    detail of the measurement.
    """
    if published.mark != "v" or published.split != split:
        return None
    if published.metric == measurement.metric:
        return measurement.figure - published.figure
    metric, _, detail = published.metric.partition("/")
    if metric == measurement.metric.partition("/")[0] and detail in measurement.details:
        return measurement.details[detail] * scale - published.figure
    return None


def contrast(
    pairs: Mapping[str, tuple[Procedure, Measurement, Measurement]], *, difference: float | None = None, seed: int = 0
) -> list[Contrast]:
    """Compare two models on benchmarks, with the p values adjusted by Holm.

    Right or wrong answers are compared by McNemar's exact test, graded scores by the paired bootstrap. Intervals are
    always those of the paired bootstrap, clustered by image.

    Args:
        pairs: name of a benchmark -> procedure, measurement of model a and of model b.
        difference: difference of mean scores for `Contrast.needed`; None for the measured one.
        seed: seed of the bootstrap.
    Raises:
        UserError: the two models were not asked the same questions.
    """
    return adjusted(
        [
            contrast_of(name, a, b, is_binary=find_metric(procedure.metric).is_binary, difference=difference, seed=seed)
            for name, (procedure, a, b) in pairs.items()
        ]
    )


def contrast_of(
    name: str, a: Measurement, b: Measurement, *, is_binary: bool, difference: float | None = None, seed: int = 0
) -> Contrast:
    """Compare two models on one benchmark, see `contrast`; the p value is not adjusted.

    Raises:
        UserError: the two models were not asked the same questions.
    """
    if a.scores.keys() != b.scores.keys() or a.metric != b.metric:
        raise UserError(
            f"{name}: the two models answered {a.count} and {b.count} questions, scored by {a.metric} and "
            f"{b.metric}. Ask both the same questions by the same --procedure"
        )
    ids = list(a.scores)
    scores_a, scores_b = ([m.scores[id] for id in ids] for m in (a, b))
    comparison = paired_bootstrap(scores_a, scores_b, [a.groups[id] for id in ids], seed=seed)
    target = comparison.difference if difference is None else difference
    test, needed = "paired bootstrap", None
    if is_binary:
        test, comparison = "McNemar", replace(comparison, p_value=mcnemar(scores_a, scores_b))
        disagreement = sum(x != y for x, y in zip(scores_a, scores_b, strict=True)) / len(ids)
        if target:
            needed = questions_needed(target, max(disagreement, abs(target)))
    elif target and comparison.interval.high > comparison.interval.low:
        needed = graded_questions_needed(target, comparison.interval, len(ids))
    return Contrast(name, comparison, test, comparison.p_value, needed)


def adjusted(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """Adjust the p values of all contrasts of a command by Holm."""
    values = holm([contrast.comparison.p_value for contrast in contrasts])
    return [replace(contrast, adjusted=value) for contrast, value in zip(contrasts, values, strict=True)]
