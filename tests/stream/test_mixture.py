"""Mixtures: weights hold at every point, no sample repeats before all others were drawn, the seed decides."""

from collections import Counter
from math import sqrt

import numpy as np
import pytest

from lit_mm.documents.document import Document
from lit_mm.errors import UserError
from lit_mm.stream.mixture import Interleaved, Joined, draws_per_epoch
from lit_mm.stream.order import stable_hash

NAMES = ["a", "b", "c"]


def joined(sizes=(70, 20, 10), draws=None):
    sources = [range(100 * s, 100 * s + size) for s, size in enumerate(sizes)]
    return Joined(sources, NAMES[: len(sizes)], draws)


def test_samples_are_numbered_source_after_source_and_say_which_is_theirs():
    sizes = {"a": 3, "b": 1, "c": 2}
    three = Joined([[Document(f"{name}{n}", ()) for n in range(size)] for name, size in sizes.items()], NAMES)
    read = [three[n] for n in range(len(three))]
    assert [document.id for document in read] == ["a0", "a1", "a2", "b0", "c0", "c1"]
    assert [document.source for document in read] == ["a", "a", "a", "b", "c", "c"]
    assert [three.source_of(n) for n in range(6)] == [0, 0, 0, 1, 2, 2]


def test_two_sources_of_one_name_are_refused():
    with pytest.raises(UserError, match="need different names"):
        Joined([range(1), range(1)], ["a", "a"])


@pytest.mark.parametrize(
    ("sizes", "weights", "draws"),
    [
        ([900, 100], [1, 1], [500, 500]),
        ([900, 100], [900, 100], [900, 100]),
        ([900, 100], [sqrt(900), sqrt(100)], [750, 250]),
        ([10, 10, 10], [1, 1, 1], [10, 10, 10]),
        ([5, 2], [2, 1], [5, 2]),  # 4.67 and 2.33: the larger remainder is rounded up
        ([1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]),
    ],
)
def test_draws_follow_the_weights_and_add_up(sizes, weights, draws):
    assert draws_per_epoch(sizes, weights, [str(n) for n in range(len(sizes))]) == draws


@pytest.mark.parametrize("weights", [[1, 0], [1, -1], [1, float("inf")], [1, float("nan")]])
def test_weights_that_are_not_positive_are_refused(weights):
    with pytest.raises(UserError, match="positive"):
        draws_per_epoch([10, 10], weights, ["a", "b"])


def test_a_source_that_is_never_drawn_is_named():
    with pytest.raises(
        UserError, match=r"source 'b' has such a small weight that it is never drawn in an epoch of 20 samples"
    ):
        draws_per_epoch([10, 10], [1, 0.001], ["a", "b"])


@pytest.mark.parametrize("draws", [(70, 20, 10), (33, 33, 34), (1, 98, 1), (140, 7, 3)])
def test_every_prefix_is_close_to_the_weights(draws):
    mixture = joined(draws=draws)
    order = Interleaved(mixture, seed=1)(2)
    sources = np.array([mixture.source_of(n) for n in order])
    total = sum(draws)
    assert len(order) == total
    for source, own in enumerate(draws):
        came = np.cumsum(sources == source)
        wanted = np.arange(1, total + 1) * own / total
        assert np.abs(came - wanted).max() <= (len(draws) + 1) / 2
        assert came[-1] == own


def test_no_sample_comes_again_before_all_of_its_source_came():
    mixture = joined(draws=(50, 45, 5))  # epochs are no multiple of any source
    order = Interleaved(mixture, seed=1)
    stream = np.concatenate([order(epoch) for epoch in range(8)])
    for source, size in enumerate(mixture.sizes):
        own = [n for n in stream.tolist() if mixture.source_of(n) == source]
        for turn in range(len(own) // size):
            assert len(set(own[turn * size : (turn + 1) * size])) == size
    assert set(stream.tolist()) == set(range(100))


def test_an_epoch_is_a_pure_function_of_seed_and_epoch():
    one, again, other = (Interleaved(joined(), seed) for seed in (1, 1, 2))
    later = again(3)
    assert one(0).tolist() == again(0).tolist()  # asked for in another order
    assert one(3).tolist() == later.tolist()
    assert one(0).tolist() != one(1).tolist()
    assert one(0).tolist() != other(0).tolist()


def test_the_order_of_a_source_does_not_depend_on_the_others():
    three, two = joined(), Joined([range(70), range(5)], ["a", "z"])
    firsts = [[n for n in Interleaved(m, 1)(0).tolist() if n < 70] for m in (three, two)]
    assert firsts[0] == firsts[1]
    assert firsts[0] == np.random.default_rng(stable_hash(1, "a", 0)).permutation(70).tolist()


def test_drawn_more_often_than_it_is_large_a_source_is_drawn_evenly():
    counts = Counter(Interleaved(joined((3, 1), draws=(7, 3)), seed=0)(0).tolist())
    assert counts[3] == 3
    assert sorted(counts[n] for n in range(3)) == [2, 2, 3]
