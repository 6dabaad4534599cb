"""Figures of a model in training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.evaluation.benchmarks.benchmark import load_benchmark
from lit_mm.evaluation.figures import BenchmarkFigures, DocumentFigures, held_out_losses
from lit_mm.objectives.next_token import NextToken
from lit_mm.samples.collate import collate
from tests.evaluation.benchmarks.files import MAKERS
from tests.preloaded import run_program
from tests.tiny import document, xcomposer2

DOCUMENTS = [document(number, pictures=number % 3, skill=("read", "count")[number % 2]) for number in range(7)]


@torch.no_grad()
def test_the_held_out_loss_is_the_mean_over_tokens_of_all_documents_and_of_each_skill() -> None:
    module = xcomposer2(dropout=0.5, trained=True).train()
    losses = held_out_losses(module, DOCUMENTS, batch_size=3)
    assert module.training
    module.eval()
    for skill in ("", "read", "count"):
        samples = [module.processor.sample(d) for d in DOCUMENTS if skill in ("", d.skill)]
        batch = collate(samples, module.processor)
        assert losses[skill] == pytest.approx(
            float(NextToken()(module.network, batch)) / batch.num_supervised, rel=1e-5
        )


def test_documents_give_figures_by_metric_source_and_skill() -> None:
    module = xcomposer2(trained=True)
    figures = DocumentFigures("mine", DOCUMENTS, ["loss", "equality", "anls"], batch_size=4, max_new_tokens=4)
    values = figures(module)
    assert list(values) == figures.names(module)
    assert list(values)[:3] == ["loss/mine", "loss/mine/read", "loss/mine/count"]
    assert 0 <= values["anls/mine"] <= 1
    alone = DocumentFigures("mine", DOCUMENTS[::2], ["loss"])
    assert list(alone(module)) == ["loss/mine"]


def test_right_answers_score_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_mm.evaluation import figures as module_of_figures

    answers = [d.answer if d.skill == "read" else "wrong" for d in DOCUMENTS]
    monkeypatch.setattr(module_of_figures, "answer", lambda *_, **__: answers)
    mixed = [dataclasses.replace(DOCUMENTS[0], skill=""), *DOCUMENTS]
    assert "equality/mine/" not in DocumentFigures("mine", mixed, ["equality"]).names(xcomposer2())
    values = DocumentFigures("mine", DOCUMENTS, ["equality"])(xcomposer2())
    assert values == {"equality/mine": 4 / 7, "equality/mine/read": 1.0, "equality/mine/count": 0.0}


def test_a_benchmark_gives_its_figure(tmp_path: Path) -> None:
    MAKERS["vsr"](tmp_path)
    benchmark = load_benchmark("vsr")
    figures = BenchmarkFigures(benchmark, "test", benchmark.reader_of("test").questions(tmp_path), batch_size=2)
    (name, value), *_ = figures(xcomposer2(trained=True)).items()
    assert name == "benchmark/vsr:test" and 0 <= value <= 100


def test_mistakes_are_refused() -> None:
    question = Document("q", (Turn("user", ("what?",)),))
    for documents, metrics, message in (
        ([], ["loss"], "has no held-out documents"),
        (DOCUMENTS, ["los"], "unknown metric 'los'"),
        ([question], ["anls"], "has no answer, which 'anls' needs"),
    ):
        with pytest.raises(UserError, match=message):
            DocumentFigures("mine", documents, metrics)
    with pytest.raises(UserError, match="not public"):
        BenchmarkFigures(load_benchmark("vizwiz"), "test", [])
    unanswered = dataclasses.replace(question, id="u")
    with pytest.raises(UserError, match="no document of 1 has a supervised token"):
        held_out_losses(xcomposer2(), [unanswered])


TWO = """
import torch
import torch.distributed as dist
from tests.forked import run_ranks
from tests.tiny import document, xcomposer2
from lit_mm.evaluation.figures import held_out_losses

def work(rank):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    module = xcomposer2(trained=True)
    documents = [document(n, pictures=n % 2, skill=str(n % 2)) for n in range(7)]
    shared = held_out_losses(module, documents, batch_size=2)
    dist.destroy_process_group()
    assert shared == held_out_losses(module, documents, batch_size=2), shared

run_ranks(work, 2)
"""


def test_two_ranks_give_the_loss_of_one_bit_by_bit() -> None:
    finished = run_program(["-c", TWO])
    assert finished.returncode == 0, finished.stderr[-2000:]
