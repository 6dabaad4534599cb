"""Packing loses nothing, keeps both budgets, is deterministic, and needs no more rows than first-fit."""

from random import Random

import pytest

from lit_mm.errors import UserError
from lit_mm.samples.length import Length
from lit_mm.stream.packing import pack, share_out


def lengths_of(tokens, views=None):
    return [Length(t, v, t) for t, v in zip(tokens, views or [0] * len(tokens), strict=True)]


def first_fit(tokens, limit):
    """Number of rows of first-fit packing."""
    left = []
    for token in tokens:
        place = next((i for i, room in enumerate(left) if room >= token), None)
        if place is None:
            left.append(limit - token)
        else:
            left[place] -= token
    return len(left)


@pytest.mark.parametrize("seed", range(20))
def test_every_sample_is_in_one_row_and_no_row_exceeds_a_budget(seed):
    rng = Random(seed)
    tokens = [rng.randint(1, 100) for _ in range(200)]
    views = [rng.randint(0, 4) for _ in range(200)]
    rows = pack(range(200), lengths_of(tokens, views), tokens=100, views=5)
    assert sorted(i for row in rows for i in row) == list(range(200))
    assert max(sum(tokens[i] for i in row) for row in rows) <= 100
    assert max(sum(views[i] for i in row) for row in rows) <= 5


@pytest.mark.parametrize("seed", range(20))
def test_it_needs_no_more_rows_than_first_fit(seed):
    rng = Random(seed)
    tokens = [min(256, 1 + int(rng.expovariate(1 / 60))) for _ in range(512)]
    rows = pack(range(512), lengths_of(tokens), tokens=256)
    assert len(rows) <= first_fit(tokens, 256)
    assert len(rows) * 256 <= sum(tokens) * 1.02 + 256  # many short ones fill every gap


def test_a_known_case_is_packed_best_fit_decreasing():
    # 7 opens a row, 5 another, 4 fits beside 5 only, 3 beside 7 only; 1 goes into the fullest row that holds it
    rows = pack([10, 11, 12, 13, 14], lengths_of([3, 4, 5, 7, 1]), tokens=10)
    assert rows == [(10, 13), (11, 12, 14)]


def test_the_budget_of_views_opens_a_row_where_tokens_would_fit():
    rows = pack([0, 1, 2], lengths_of([10, 10, 10], [2, 2, 1]), tokens=100, views=3)
    assert rows == [(0, 2), (1,)]


def test_equal_lengths_keep_the_given_order():
    assert pack([3, 1, 2, 0], lengths_of([5] * 4), tokens=10) == [(3, 1), (2, 0)]


@pytest.mark.parametrize(("tokens", "views"), [(11, 1), (5, 4)])
def test_a_sample_that_alone_exceeds_a_budget_is_refused_with_both_numbers(tokens, views):
    with pytest.raises(
        UserError, match=rf"sample 7 has {tokens} tokens and {views} views, but a row holds 10 tokens and 3"
    ):
        pack([7], [Length(tokens, views, 0)], tokens=10, views=3)


@pytest.mark.parametrize("seed", range(10))
def test_rows_are_shared_out_in_equal_numbers_and_none_twice(seed):
    rng = Random(seed)
    costs = [(rng.randint(1, 100), rng.randint(0, 9)) for _ in range(48)]
    for shares in (1, 2, 8, 48):
        dealt = share_out(costs, shares)
        assert [len(places) for places in dealt] == [48 // shares] * shares
        assert sorted(place for places in dealt for place in places) == list(range(48))
        assert all(places == sorted(places) for places in dealt)
        assert dealt == share_out(costs, shares)


@pytest.mark.parametrize("seed", range(10))
def test_no_share_has_far_more_tokens_or_views_than_another(seed):
    rng = Random(seed)
    costs = [(rng.randint(3900, 4096), rng.randint(1, 20)) for _ in range(64)]  # packed rows; in order: 1.2 and more
    for kind in (0, 1):
        loads = [sum(costs[place][kind] for place in places) for places in share_out(costs, 8)]
        assert max(loads) * 8 <= 1.05 * sum(loads)


def test_one_share_gets_all_rows_as_they_are():
    assert share_out([(1, 1), (9, 0), (5, 5)], 1) == [[0, 1, 2]]


def test_rows_without_views_or_tokens_are_shared_out_too():
    assert share_out([(4, 0), (1, 0), (3, 0), (2, 0)], 2) == [[0, 1], [2, 3]]
