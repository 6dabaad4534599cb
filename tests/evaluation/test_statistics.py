"""Intervals and tests of scores."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from lit_mm.errors import UserError
from lit_mm.evaluation.statistics import (
    Interval,
    binomial_p,
    bootstrap_figure,
    bootstrap_interval,
    graded_questions_needed,
    holm,
    mcnemar,
    paired_bootstrap,
    questions_needed,
)


def clustered(generator: np.random.Generator, images: int, questions: int) -> tuple[list[float], list[str]]:
    """Draw right and wrong answers; the chance of a right answer is 0.6 on average and equal within an image."""
    chances = generator.choice([0.3, 0.9], size=images)
    scores = generator.random((images, questions)) < chances[:, None]
    return scores.ravel().astype(float).tolist(), [f"image {i}" for i in range(images) for _ in range(questions)]


def test_the_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(7)
    covered = alone = 0
    for seed in range(200):
        scores, groups = clustered(generator, 60, 8)
        interval = bootstrap_interval(scores, groups, seed=seed, resamples=400)
        covered += interval.low <= 0.6 <= interval.high
        interval = bootstrap_interval(scores, [str(i) for i in range(len(scores))], seed=seed, resamples=400)
        alone += interval.low <= 0.6 <= interval.high
    assert 0.90 <= covered / 200 <= 0.985
    assert alone / 200 < 0.85  # questions drawn one by one give an interval that is too narrow


def test_the_seed_fixes_the_interval() -> None:
    scores, groups = clustered(np.random.default_rng(0), 20, 3)
    assert bootstrap_interval(scores, groups, seed=1) == bootstrap_interval(scores, groups, seed=1)
    assert bootstrap_interval(scores, groups, seed=1) != bootstrap_interval(scores, groups, seed=2)


def test_images_of_unequal_size_count_by_their_questions() -> None:
    interval = bootstrap_interval([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"], resamples=4000)
    assert (interval.low, interval.high) == (0.0, 1.0)
    median = bootstrap_interval([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"], resamples=4000, level=0.0)
    assert median.low == median.high == 0.75


def test_scores_that_are_all_alike_have_an_interval_by_the_number_of_images() -> None:
    groups = [str(number // 2) for number in range(20)]
    none, every = (bootstrap_interval([score] * 20, groups) for score in (0.0, 1.0))
    assert none.low == 0.0 and none.high == pytest.approx(0.2775, abs=1e-4)
    assert every.high == 1.0 and every.low == pytest.approx(1 - none.high)
    half = bootstrap_interval([0.5] * 20, groups)
    assert (half.low, half.high) == (0.5, 0.5)


def test_the_interval_of_a_figure_agrees_with_that_of_the_mean() -> None:
    scores, groups = clustered(np.random.default_rng(1), 50, 4)
    mean = bootstrap_interval(scores, groups)
    figure = bootstrap_figure(lambda rows: float(np.mean([scores[i] for i in rows])), groups)
    assert figure.low == pytest.approx(mean.low, abs=0.02) and figure.high == pytest.approx(mean.high, abs=0.02)


@pytest.mark.parametrize(
    ("only_a", "only_b", "both", "p"),
    [
        (1, 9, 30, 2 * (1 + 10) / 2**10),
        (9, 1, 0, 2 * (1 + 10) / 2**10),
        (0, 5, 3, 2 / 2**5),
        (5, 5, 3, 1.0),
        (0, 0, 4, 1.0),
        (3, 4, 0, 1.0),
    ],
)
def test_mcnemar_agrees_with_a_table_computed_by_hand(only_a: int, only_b: int, both: int, p: float) -> None:
    a = [1.0] * only_a + [0.0] * only_b + [1.0] * both
    b = [0.0] * only_a + [1.0] * only_b + [1.0] * both
    assert mcnemar(a, b) == pytest.approx(p, rel=1e-12)


def test_mcnemar_of_thousands_of_questions_does_not_overflow() -> None:
    assert 0 < binomial_p(2400, 5200) < 1e-7


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.04, 0.01, 0.03, 0.005], [0.06, 0.03, 0.06, 0.02]),
        ([0.6, 0.7], [1.0, 1.0]),
        ([0.02], [0.02]),
        ([], []),
    ],
)
def test_holm_agrees_with_worked_examples(p_values: list[float], adjusted: list[float]) -> None:
    assert holm(p_values) == pytest.approx(adjusted)


def test_the_paired_bootstrap_tells_a_shift_and_no_shift() -> None:
    generator = np.random.default_rng(3)
    a = generator.random(200)
    noise = generator.normal(0, 0.1, 200)
    groups = [str(i // 2) for i in range(200)]
    shifted = paired_bootstrap(a.tolist(), (a + noise + 0.05).tolist(), groups)
    assert shifted.p_value < 0.01 and shifted.interval.low > 0
    assert shifted.difference == pytest.approx(float(np.mean(noise + 0.05)))
    equal = paired_bootstrap(a.tolist(), a.tolist(), groups)
    assert equal.p_value == 1 and equal.difference == 0


@pytest.mark.parametrize(("difference", "disagreement"), [(0.05, 0.2), (-0.1, 0.3)])
def test_power_is_the_inverse_of_mcnemars_test(difference: float, disagreement: float) -> None:
    questions = questions_needed(difference, disagreement)
    generator = np.random.default_rng(5)
    only_b, only_a = (disagreement + difference) / 2, (disagreement - difference) / 2
    draws = generator.multinomial(questions, [only_a, only_b, 1 - disagreement], size=1500)
    power = np.mean([binomial_p(int(min(a, b)), int(a + b)) < 0.05 for a, b, _ in draws])
    assert 0.72 < power < 0.85  # the exact test is a little more careful than the normal approximation


def test_questions_needed_agrees_with_its_formula() -> None:
    expected = ((1.959964 * math.sqrt(0.2) + 0.841621 * math.sqrt(0.2 - 0.0025)) / 0.05) ** 2
    assert questions_needed(0.05, 0.2) == math.ceil(expected) == 626


def test_graded_questions_needed_agree_with_the_spread_of_the_differences() -> None:
    assert graded_questions_needed(0.01, Interval(-0.02, 0.02), 1000) == 8173
    differences = np.random.default_rng(0).normal(0.0, 0.3, 2000)
    groups = [str(number) for number in range(2000)]
    interval = paired_bootstrap([0.0] * 2000, differences.tolist(), groups).interval
    expected = ((1.959964 + 0.841621) * differences.std() / 0.02) ** 2
    assert graded_questions_needed(0.02, interval, 2000) == pytest.approx(expected, rel=0.1)
    for difference, bounds in ((0.0, Interval(-1, 1)), (0.1, Interval(0, 0))):
        with pytest.raises(UserError, match="a difference other than 0"):
            graded_questions_needed(difference, bounds, 10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_interval([], []), "one group per score"),
        (lambda: bootstrap_interval([1.0], ["a", "b"]), "1 scores and 2 groups"),
        (lambda: mcnemar([1.0], [1.0, 0.0]), "got 1 and 2"),
        (lambda: mcnemar([0.3], [1.0]), "0 or 1"),
        (lambda: questions_needed(0.3, 0.2), "disagreement"),
        (lambda: questions_needed(0.0, 0.2), "difference"),
    ],
)
def test_wrong_input_is_refused(call: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()  # type: ignore[operator]


def test_holm_never_reverses_the_order_of_p_values() -> None:
    for p_values in itertools.permutations([0.001, 0.02, 0.02, 0.5]):
        adjusted = holm(p_values)
        assert all(x <= y for (_, x), (_, y) in itertools.pairwise(sorted(zip(p_values, adjusted, strict=True))))
