"""The order of training: a step has the same rows under any split and after any resume."""

import subprocess
import sys
from itertools import islice, pairwise

import numpy as np
import pytest

from lit_mm.errors import UserError
from lit_mm.samples.length import Length
from lit_mm.stream.order import Plan, RowStream, stable_hash

PINNED = [(39, 97), (93, 33), (76,)]  # the first rows of `plan()`


def length(number):
    return Length(tokens=5 + number * 37 % 60, views=number % 3, supervised=1 + number % 7)


def plan(samples=100, seed=3, row_tokens=64, row_views=4, window=16, length=length):
    return Plan(samples, length, seed=seed, row_tokens=row_tokens, row_views=row_views, window=window)


def stream(rank=0, world=1, micro_batch=2, steps=12, first_step=0, source=None, global_batch=8):
    return RowStream(
        source or plan(),
        steps=steps,
        global_batch=global_batch,
        micro_batch=micro_batch,
        rank=rank,
        world=world,
        first_step=first_step,
    )


def rows_by_step(world, micro_batch):
    """Rows of every step over all ranks and micro-batches, and the supervised tokens by which the ranks divide."""
    accumulation = stream(world=world, micro_batch=micro_batch).accumulation
    steps = [(set(), set()) for _ in range(12)]
    for rank in range(world):
        for number, micro in enumerate(stream(rank, world, micro_batch)):
            assert len(micro.rows) == micro_batch
            rows, tokens = steps[number // accumulation]
            assert not rows & set(micro.rows)
            rows.update(micro.rows)
            tokens.add(micro.step_tokens)
    return steps


@pytest.mark.parametrize("packed", [True, False])
def test_every_sample_of_an_epoch_appears_exactly_once(packed):
    source = plan(row_tokens=64 if packed else None)
    first, second = source.rows_of(1), source.rows_of(2)
    epochs = [source.rows(0, first), source.rows(first, second)]
    for rows in epochs:
        assert sorted(i for row in rows for i in row) == list(range(100))
    assert epochs[0] != epochs[1]


def test_no_row_exceeds_its_budgets():
    for row in plan().rows(0, 200):
        assert sum(length(i).tokens for i in row) <= 64
        assert sum(length(i).views for i in row) <= 4


def test_rows_are_a_function_of_their_place_alone():
    whole = plan().rows(0, 90)
    assert plan().rows(71, 90) == whole[71:]
    source = plan()
    assert [source.rows(start, stop) for start, stop in ((60, 61), (0, 7), (33, 80), (5, 5))] == [
        whole[60:61],
        whole[:7],
        whole[33:80],
        [],
    ]


def test_another_seed_gives_another_order():
    assert plan(seed=4).rows(0, 20) != plan(seed=3).rows(0, 20)


def test_hash_and_order_are_the_same_in_another_process():
    code = "from lit_mm.stream.order import stable_hash; print(stable_hash(0, 'a', (1, 2)))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == stable_hash(0, "a", (1, 2))
    assert plan().rows(0, 3) == PINNED  # a change here changes every run: it must be meant


@pytest.mark.parametrize(("world", "micro_batch"), [(1, 8), (1, 2), (1, 1), (2, 4), (2, 1), (4, 2), (8, 1)])
def test_ranks_and_accumulation_split_a_step_and_do_not_change_it(world, micro_batch):
    source = plan()
    steps = rows_by_step(world, micro_batch)
    for step, (rows, tokens) in enumerate(steps):
        expected = source.rows(step * 8, step * 8 + 8)
        assert rows == set(expected)
        assert tokens == {sum(length(i).supervised for row in expected for i in row)}


@pytest.mark.parametrize("first_step", [0, 1, 7, 12])
def test_resuming_at_a_step_gives_the_tail_of_the_full_stream(first_step):
    full = list(stream(rank=1, world=2))
    assert list(stream(rank=1, world=2, first_step=first_step)) == full[first_step * 2 :]


def test_its_length_counts_the_whole_stage_wherever_it_resumes():
    assert len(stream(first_step=5)) == len(list(stream())) == 12 * 4


def test_windows_are_packed_when_they_are_reached():
    asked = set()

    def counted(number):
        asked.add(number)
        return length(number)

    micros = iter(stream(source=plan(samples=10_000, length=counted), global_batch=2))
    list(islice(micros, 1))
    assert len(asked) == 16


@pytest.mark.parametrize("start", [0, 1, 40, 77, 200, 399])
def test_a_mark_takes_the_stream_up_without_packing_what_came_before(start):
    rows = plan().rows(0, 420)
    mark = plan().mark(start)
    asked = set()

    def counted(number):
        asked.add(number)
        return length(number)

    source = plan(length=counted)
    source.go_to(mark)
    assert source.rows(start, start + 4) == rows[start : start + 4]
    assert len(asked) <= 32  # two windows at most
    assert source.rows(0, 420) == rows  # what lies before the mark is found as well
    assert source.mark(start) == mark
    assert source.rows_of(1) == plan().rows_of(1)


def some_left_out(number):
    return None if number % 5 == 0 or 30 <= number < 70 else length(number)


@pytest.mark.parametrize("window", [1, 4, 16, 200])
@pytest.mark.parametrize("step", [1, 3, 8])
def test_what_is_left_out_is_told_once_whatever_the_steps_and_wherever_they_start(window, step):
    source = plan(length=some_left_out, window=window)
    end = source.rows_of(3)
    cuts = [*range(0, end, step), end]
    told = [source.left_out(start, stop) for start, stop in pairwise(cuts)]
    out = [n for n in range(100) if some_left_out(n) is None]
    assert sorted(n for step in told for n in step) == sorted(out * 3)
    assert sorted(n for row in source.rows(0, end) for n in row) == sorted([*(set(range(100)) - set(out))] * 3)
    for at in (1, len(told) // 2, len(told) - 1):
        fresh = plan(length=some_left_out, window=window)
        fresh.go_to(fresh.mark(cuts[at] - 1))
        assert fresh.left_out(cuts[at], cuts[at + 1]) == told[at]


def test_an_epoch_is_told_whole_by_the_steps_that_end_with_it():
    source = plan(length=some_left_out, window=1)
    end = source.rows_of(1)
    assert len(source.left_out(0, end)) + sum(len(row) for row in source.rows(0, end)) == 100


def test_a_data_set_of_which_everything_is_left_out_is_refused():
    with pytest.raises(UserError, match="all were left out"):
        plan(length=lambda number: None).rows(0, 1)


def test_another_order_may_be_given():
    source = Plan(6, length, seed=0, row_tokens=None, window=2, order=lambda epoch: np.arange(6) + 10 * epoch)
    assert source.rows(4, 8) == [(4,), (5,), (10,), (11,)]
    assert source.first(3) == [0, 1, 2]


def test_a_step_tells_the_samples_that_it_accounts_for():
    source = stream(source=plan(length=some_left_out))
    rows = source.plan.rows(8, 16)
    assert source.samples(1) == ([n for row in rows for n in row], source.plan.left_out(8, 16))


def test_a_global_batch_that_cannot_be_split_is_refused_with_the_cure():
    with pytest.raises(UserError, match=r"got 8 and 3 x 2\. Change `data\.init_args\.micro_batch`"):
        stream(world=2, micro_batch=3)


def test_an_empty_data_set_is_refused():
    with pytest.raises(UserError, match="the data set is empty"):
        plan(samples=0)


def test_a_step_without_anything_to_learn_is_refused():
    silent = plan(length=lambda number: Length(10, 0, 0))
    with pytest.raises(UserError, match=r"optimizer step 0 .*no supervised token"):
        next(iter(stream(source=silent)))
