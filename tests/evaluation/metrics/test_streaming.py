"""The torchmetrics wrapper gives the same figure for any order and grouping of rows."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist

from lit_mm.errors import UserError
from lit_mm.evaluation.metrics import Row, score_rows
from lit_mm.evaluation.metrics.streaming import StreamingMetric
from tests.forked import run_ranks

ANSWERS = ["yes", "no", "Yes. Ünïcode\n", "maybe", "no", "yes", "No"]
ROWS = [
    Row(str(i), f"image {i // 2}", text, ("yes" if i % 2 else "no",), choices=("yes", "no"), size=(3, 4))
    for i, text in enumerate(ANSWERS)
]

SCORES = [Row(str(i), f"image {i}", repr(0.7 * i % 2 - 1), (("yes", "no")[i * i % 3],)) for i in range(7)]


@pytest.mark.parametrize("metric", ["equality", "anls", "pope_f1"])
def test_pieces_and_order_do_not_change_the_figure(metric: str) -> None:
    expected = score_rows(metric, ROWS).figure
    stream = StreamingMetric(metric)
    for piece in (ROWS[4:], [], ROWS[:1], ROWS[1:4]):
        stream.update(piece)
    assert stream.compute().item() == expected
    assert stream.rows() == ROWS
    stream.reset()
    with pytest.raises(UserError, match="at least one row"):
        stream.scored()


def test_a_row_that_a_sampler_repeats_is_scored_once_and_two_answers_are_refused() -> None:
    stream = StreamingMetric("equality")
    stream.update([*ROWS, ROWS[0]])
    assert stream.compute().item() == score_rows("equality", ROWS).figure
    stream.update([Row("0", "image 0", "another", ("no",))])
    with pytest.raises(UserError, match="'0' occurs twice"):
        stream.scored()


def work(rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=int(os.environ["WORLD_SIZE"]))
    for metric, shares in (
        ("equality", [ROWS[::2], ROWS[1::2]]),
        ("pope_f1", [ROWS[6:], ROWS[:6]]),
        ("anls", [ROWS, []]),
        ("anls", [[], ROWS]),
    ):
        stream = StreamingMetric(metric)
        stream.update(shares[rank])
        assert stream.compute().item() == score_rows(metric, ROWS).figure
    stream = StreamingMetric("roc_auc")
    stream.update(SCORES[rank::2])
    assert stream.compute().item() == score_rows("roc_auc", SCORES).figure
    dist.destroy_process_group()


def test_two_ranks_give_the_figure_of_one() -> None:
    run_ranks(work, 2)
