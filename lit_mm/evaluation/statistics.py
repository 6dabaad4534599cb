"""Confidence intervals and significance tests of scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from lit_mm.errors import UserError

RESAMPLES = 2000
CHUNK = 2**22  # clusters drawn at a time, 32 MiB of indices


@dataclass(frozen=True)
class Interval:
    """Bounds of a figure at a level of confidence."""

    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """The difference b - a of two mean scores on the same questions.

    Attributes:
        difference: mean score of b minus that of a.
        interval: 95 % confidence interval of the difference.
        p_value: two-sided probability of such a difference if both models were equal.
    """

    difference: float
    interval: Interval
    p_value: float


def bootstrap_interval(
    scores: Sequence[float], groups: Sequence[str], *, seed: int = 0, resamples: int = RESAMPLES, level: float = 0.95
) -> Interval:
    """Compute a percentile interval of the mean score; whole images are resampled, since their questions correlate.

    If all scores are 0 or all are 1, resamples do not differ. The interval is then Wilson's for as many answers as
    there are images: 0 of 20 questions about 10 images -> 0 to 0.278.

    Args:
        scores: score of each question.
        groups: image of each question.
        seed: seed of the resampling.
        resamples: number of resamples.
        level: level of confidence.
    Raises:
        UserError: there are no scores, or not one group per score.
    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13; Field and Welsh,
        "Bootstrapping clustered data" (2007).
    """
    means = _means(scores, groups, seed, resamples)
    if len(set(scores)) == 1 and scores[0] in (0, 1):
        return wilson_interval(scores[0], len(set(groups)), level=level)
    return _percentiles(means, level)


def bootstrap_figure(
    figure: Callable[[Sequence[int]], float],
    groups: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> Interval:
    """Compute a percentile interval of any figure, clustered by image.

    It is slower than `bootstrap_interval` and serves figures that are no mean of scores, such as F1. An image appears
    as often as it was drawn; `lit_mm.evaluation.metrics.resample` gives the copies different names.

    Args:
        figure: function that computes the figure of the rows at the indices of a resample.
        groups: image of each row.
        seed: seed of the resampling.
        resamples: number of resamples.
        level: level of confidence.
    """
    clusters, members = _clusters(groups)
    rows = [np.flatnonzero(members == number) for number in range(clusters)]
    generator = np.random.default_rng(seed)
    draws = (generator.integers(clusters, size=clusters) for _ in range(resamples))
    return _percentiles(
        np.array([figure(np.concatenate([rows[number] for number in draw]).tolist()) for draw in draws]), level
    )


def wilson_interval(share: float, count: int, *, level: float = 0.95) -> Interval:
    """Compute the interval of a share of right answers from the share and the number of answers alone.

    10 right answers of 20 -> 0.299 to 0.701.

    Args:
        share: share of right answers, 0 to 1.
        count: number of answers.
        level: level of confidence.
    Raises:
        UserError: there are no answers.
    Source: Wilson, Journal of the American Statistical Association 22 (1927).
    """
    if count < 1:
        raise UserError(f"the interval of a share needs at least one answer, got {count}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle, weight = share + z**2 / (2 * count), 1 + z**2 / count
    reach = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    # The interval contains the share, in floating point too
    return Interval(min(share, (middle - reach) / weight), max(share, (middle + reach) / weight))


def mcnemar(a: Sequence[float], b: Sequence[float]) -> float:
    """Compute the exact two-sided p of McNemar's test on right (1) or wrong (0) answers to the same questions.

    Only questions on which a and b differ count. With 1 question in favour of one and 9 of the other,
    p = 2 * (1 + 10) / 2**10 = 0.0215.

    Raises:
        UserError: lengths differ, or a score is neither 0 nor 1.
    Source: McNemar, Psychometrika 12 (1947); exact form by the binomial distribution.
    """
    _check_pairs(a, b)
    if not set(a) | set(b) <= {0, 1}:
        raise UserError(
            "McNemar's test needs scores of 0 or 1, got others. Use the paired bootstrap for graded scores."
        )
    only_a = sum(x > y for x, y in zip(a, b, strict=True))
    only_b = sum(x < y for x, y in zip(a, b, strict=True))
    return binomial_p(min(only_a, only_b), only_a + only_b)


def binomial_p(k: int, n: int) -> float:
    """Compute the two-sided p of k or fewer heads (or as many tails) in n throws of a fair coin; it is 1 for n = 0."""
    tail = sum(math.comb(n, i) for i in range(k + 1))
    return float(min(1, 2 * tail / 2**n)) if 2 * k < n else 1.0


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], groups: Sequence[str], *, seed: int = 0, resamples: int = RESAMPLES
) -> Comparison:
    """Compare two graded scores of the same questions; whole images are resampled with replacement.

    p is twice the smaller share of resamples on one side of 0. A resample of exactly 0 counts on both sides. One is
    added to counts and resamples, so that p is never 0.

    Raises:
        UserError: lengths differ, or there are no scores.
    Source: Davison and Hinkley, "Bootstrap Methods and their Application" (1997), section 4.4.
    """
    _check_pairs(a, b)
    differences = np.asarray(b, float) - np.asarray(a, float)
    means = _means(differences, groups, seed, resamples)
    side = min(np.count_nonzero(means <= 0), np.count_nonzero(means >= 0))
    p_value = min(1.0, 2 * (side + 1) / (resamples + 1))
    return Comparison(float(differences.mean()), _percentiles(means, 0.95), p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p values of several comparisons; their order stays. 0.01, 0.04, 0.03 -> 0.03, 0.06, 0.06.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for position, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - position) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def questions_needed(difference: float, disagreement: float, *, alpha: float = 0.05, power: float = 0.8) -> int:
    """Compute the number of questions with which McNemar's test detects a difference of two accuracies.

    Args:
        difference: accuracy of b minus that of a, a fraction.
        disagreement: share of questions on which exactly one of the two is right, at least abs(difference).
        alpha: two-sided level of the test.
        power: probability of detecting the difference.
    Raises:
        UserError: the difference is 0 or larger than the disagreement, or a share is not between 0 and 1.
    Source: Connor, Biometrics 43 (1987), the normal approximation without correction for continuity.
    """
    if not 0 < abs(difference) <= disagreement <= 1 or not 0 < alpha < 1 or not 0 < power < 1:
        raise UserError(
            "questions_needed expects 0 < |difference| <= disagreement <= 1 and alpha and power between 0 and 1, "
            f"got {difference=}, {disagreement=}, {alpha=}, {power=}"
        )
    normal = NormalDist()
    size = normal.inv_cdf(1 - alpha / 2) * math.sqrt(disagreement)
    spread = normal.inv_cdf(power) * math.sqrt(disagreement - difference**2)
    return math.ceil(((size + spread) / difference) ** 2)


def graded_questions_needed(
    difference: float, interval: Interval, count: int, *, alpha: float = 0.05, power: float = 0.8
) -> int:
    """Compute the number of questions with which the paired bootstrap detects a difference of two mean scores.

    The standard error shrinks with the root of the number of questions. An interval of -0.02 to 0.02 from 1,000
    questions has a standard error of 0.0102, so a difference of 0.01 needs 8,173.

    Args:
        difference: mean score of b minus that of a to detect.
        interval: 95 % interval of the difference from `count` questions, clustered by image.
        count: number of questions.
        alpha: two-sided level of the test.
        power: probability of detecting the difference.
    Raises:
        UserError: the difference is 0, or the interval is empty.
    Source: Miller, "Adding Error Bars to Evals" (arXiv:2411.00640), the formula of the sample size.
    """
    normal = NormalDist()
    error = (interval.high - interval.low) / (2 * normal.inv_cdf(0.975))
    if not difference or not error > 0:
        raise UserError(
            "graded_questions_needed expects a difference other than 0 and an interval that is not empty, got "
            f"{difference=}, {interval=}"
        )
    return math.ceil(count * ((normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)) * error / difference) ** 2)


def _means(
    scores: Sequence[float] | NDArray[np.floating], groups: Sequence[str], seed: int, resamples: int
) -> NDArray[np.floating]:
    """Return [resamples] means of scores, with clusters drawn with replacement."""
    if len(scores) == 0 or len(scores) != len(groups):
        raise UserError(f"the bootstrap needs one group per score, got {len(scores)} scores and {len(groups)} groups")
    clusters, members = _clusters(groups)
    sums = np.bincount(members, np.asarray(scores, float), clusters)
    sizes = np.bincount(members, minlength=clusters)
    generator = np.random.default_rng(seed)
    rows = max(1, CHUNK // clusters)
    means = []
    for start in range(0, resamples, rows):
        draw = generator.integers(clusters, size=(min(rows, resamples - start), clusters))
        means.append(sums[draw].sum(1) / sizes[draw].sum(1))
    return np.concatenate(means)


def _clusters(groups: Sequence[str]) -> tuple[int, NDArray[np.intp]]:
    """Return the number of clusters and the cluster of each row."""
    names, members = np.unique(np.asarray(groups), return_inverse=True)
    return len(names), members


def _percentiles(values: NDArray[np.floating], level: float) -> Interval:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _check_pairs(a: Sequence[float], b: Sequence[float]) -> None:
    if len(a) != len(b) or not len(a):
        raise UserError(f"a comparison needs the same questions on both sides, got {len(a)} and {len(b)} scores")
