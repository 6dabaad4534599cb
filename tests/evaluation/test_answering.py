"""Answers to a benchmark do not depend on interruptions, and are computed once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from lit_mm.errors import UserError
from lit_mm.evaluation import answering
from lit_mm.evaluation.answering import AnswerFile, answer_questions, digest_of_asking, odds, plan_batches, rank_all
from lit_mm.evaluation.benchmarks.benchmark import Candidates, Procedure, load_benchmark
from lit_mm.evaluation.benchmarks.question import Question
from lit_mm.evaluation.measurement import measure, rows_of
from tests.evaluation.benchmarks.files import MAKERS
from tests.preloaded import run_program
from tests.tiny import Noise, sharp_xcomposer2

GENERATION = Procedure("g", "equality", "{question} ?", decoding={"max_new_tokens": 6})
SAMPLING = Procedure("s", "equality", decoding={"max_new_tokens": 6, "sample": True})
RANKING = Procedure("r", "equality", answering="candidates", candidates=Candidates({"x": ("red",), "y": ("page", "?")}))
ODDS = Procedure(
    "o", "roc_auc", answering="candidates", candidates=Candidates({"x": ("red",), "y": ("page", "?")}, odds_of="x")
)
QUESTIONS = [Question(f"q{n}", Noise(n), "what is " * (1 + n % 4), ("red",)) for n in range(9)]


@pytest.fixture(scope="module")
def module():
    """A model with large random weights, whose answers depend on the question."""
    return sharp_xcomposer2().eval()


@pytest.mark.parametrize(
    "procedure", [GENERATION, SAMPLING, RANKING, ODDS], ids=["generation", "sampling", "candidates", "odds"]
)
def test_a_killed_evaluation_goes_on_with_the_same_answers(
    procedure: Procedure, module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[int, int]] = []

    def progress(answered: int, total: int) -> None:
        steps.append((answered, total))

    whole = answer_questions(module, QUESTIONS, procedure, folder=tmp_path / "whole", batch_size=2, progress=progress)
    assert steps == [(number, len(steps)) for number in range(1, len(steps) + 1)] and len(steps) in (5, 9)
    assert list(whole) == [question.id for question in QUESTIONS]
    assert len(set(whole.values())) > 1
    calls = []
    name = "ranked" if procedure.candidates else "generated"
    work = getattr(answering, name)

    def killed(*arguments):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(arguments)
        return work(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(answering, name, killed)
        answer_questions(module, QUESTIONS, procedure, folder=tmp_path / "killed", batch_size=2)
    file = tmp_path / "killed/answers-0.jsonl"
    with file.open("ab") as stream:
        stream.write(b'{"id": "q8", "ans')  # torn by the kill
    assert 0 < len(AnswerFile(tmp_path / "killed").read()) < len(QUESTIONS)
    assert answer_questions(module, QUESTIONS, procedure, folder=tmp_path / "killed", batch_size=2) == whole
    with monkeypatch.context() as patch:
        patch.setattr(answering, name, lambda *_: pytest.fail("stored answers were computed again"))
        assert answer_questions(module, QUESTIONS, procedure, folder=tmp_path / "killed", batch_size=2) == whole


def test_draws_depend_on_seed_and_id_alone(module) -> None:
    all_of_them = answer_questions(module, QUESTIONS, SAMPLING)
    assert answer_questions(module, QUESTIONS[3:5][::-1], SAMPLING) == {id: all_of_them[id] for id in ("q4", "q3")}
    assert answer_questions(module, QUESTIONS, SAMPLING, seed=1) != all_of_them


def test_the_plan_of_batches_depends_on_lengths_and_ids_alone() -> None:
    lengths = {"b": 3, "a": 3, "d": 1, "c": 9}
    assert plan_batches(lengths, 2) == [["d", "a"], ["b", "c"]]
    assert plan_batches(dict(reversed(lengths.items())), 2) == plan_batches(lengths, 2)


CHANGES = {
    "weights": {"weights": "other"},
    "data": {"data": "other"},
    "batch size": {"batch_size": 3},
    "seed": {"seed": 1},
    "blindness": {"blind": True},
}


def test_the_name_of_the_folder_changes_with_all_that_determines_the_answers(module, monkeypatch) -> None:
    facts = {"weights": "w", "data": "d"}

    def digest(procedure=GENERATION, questions=QUESTIONS, **changes):
        return digest_of_asking(module, questions, procedure, **facts | changes)

    digests = [digest(), *(digest(**change) for change in CHANGES.values()), digest(RANKING), digest(SAMPLING)]
    digests.append(digest(dataclasses.replace(GENERATION, prompt="{question}")))
    digests.append(digest(questions=QUESTIONS[:-1]))
    monkeypatch.setattr(answering, "VERSION", answering.VERSION + 1)
    digests.append(digest())
    assert len(set(digests)) == len(digests)
    monkeypatch.undo()
    assert digest() == digests[0]
    assert digest(dataclasses.replace(GENERATION, metric="anls", name="other")) == digests[0]  # scoring is not asking


def test_log_odds_are_those_of_the_likeliest_texts_and_agree_with_the_choice(module) -> None:
    assert odds(["x", "y", "y", "z"], [-1.0, -3.0, -0.25, -9.0], "x") == -0.75
    choices, values = (answer_questions(module, QUESTIONS, procedure) for procedure in (RANKING, ODDS))
    assert {id: "x" if float(value) > 0 else "y" for id, value in values.items()} == choices
    assert len(set(values.values())) > 2


def test_a_model_that_cannot_rank_is_refused_for_retrieval(module) -> None:
    with pytest.raises(UserError, match="cannot score pictures against captions"):
        rank_all(module, QUESTIONS, [question.picture for question in QUESTIONS])


class PixelRanker:
    """Ranks by the number in the names of captions: picture n and captions 2n, 2n + 1 belong together."""

    def __call__(self, *_, **__):
        raise AssertionError

    def rank(self, module, pictures, captions):
        first = np.arange(len(pictures))[:, None] == np.arange(len(captions))[None] // 2
        first[0] = ~first[0]  # the first picture is wrong
        order = np.argsort(~first, axis=1, kind="stable")
        return order, np.argsort(~(np.arange(len(captions))[:, None] // 2 == np.arange(len(pictures))[None]), axis=1)


def test_rankings_of_an_examiner_give_recall_in_both_directions(module, tmp_path: Path, monkeypatch) -> None:
    MAKERS["flickr30k_retrieval"](tmp_path)
    benchmark = load_benchmark("flickr30k_retrieval")
    questions = benchmark.reader_of("test").questions(tmp_path)
    procedure = benchmark.procedure_of("any")
    monkeypatch.setattr(module, "examiner", PixelRanker())
    answers = answer_questions(module, questions, procedure, folder=tmp_path / "answers")
    result = measure(benchmark, procedure, rows_of(questions, answers, procedure))
    assert (result.details["image_to_text"], result.details["text_to_image"]) == (0.8, 1.0)
    assert result.figure == pytest.approx(90.0)
    file = tmp_path / "answers/answers-0.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:3]))  # killed while rankings were stored
    assert answer_questions(module, questions, procedure, folder=tmp_path / "answers") == answers
    monkeypatch.setattr(module, "examiner", None)
    assert answer_questions(module, questions, procedure, folder=tmp_path / "answers") == answers


@pytest.mark.parametrize("name", ["textvqa", "scienceqa", "mmbench", "vsr", "refcoco"])
def test_a_model_is_measured_on_a_benchmark_in_its_published_files(name: str, module, tmp_path: Path) -> None:
    MAKERS[name](tmp_path)
    benchmark = load_benchmark(name)
    questions = benchmark.reader_of(benchmark.split()).questions(tmp_path)
    for procedure in benchmark.procedures:
        answers = answer_questions(module, questions, procedure, source=name, batch_size=2)
        result = measure(benchmark, procedure, rows_of(questions, answers, procedure))
        assert 0 <= result.interval.low <= result.figure <= result.interval.high <= 100


def test_blind_answers_are_those_to_other_pictures(module) -> None:
    sighted = answer_questions(module, QUESTIONS, GENERATION)
    blind = answer_questions(module, QUESTIONS, GENERATION, blind=True)
    assert sighted.keys() == blind.keys() and sighted != blind


TWO = """
import sys, torch
import torch.distributed as dist
from pathlib import Path
from tests.forked import run_ranks
from tests.tiny import Noise, document, xcomposer2
from lit_mm.evaluation.answering import answer_questions
from lit_mm.evaluation.benchmarks.benchmark import Candidates, Procedure
from lit_mm.evaluation.benchmarks.question import Question
from lit_mm.evaluation.held_out import examine_stored

DOCUMENTS = [document(n, pictures=n % 2) for n in range(5)]
QUESTIONS = [Question(f"q{n}", Noise(n), "what is " * (1 + n % 4), ("red",)) for n in range(9)]
PROCEDURES = {
    "generation": Procedure("g", "equality", decoding={"max_new_tokens": 4}),
    "odds": Procedure("o", "roc_auc", answering="candidates",
                      candidates=Candidates({"x": ("red",), "y": ("page", "?")}, odds_of="x")),
    "candidates": Procedure("r", "equality", answering="candidates",
                            candidates=Candidates({"x": ("red",), "y": ("page", "?")})),
}

def work(rank):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    module = xcomposer2(trained=True)
    root = Path(sys.argv[1])
    shared = {
        name: answer_questions(module, QUESTIONS, p, folder=root / name, batch_size=2) for name, p in PROCEDURES.items()
    }
    (root / f"{name}/answers-1.jsonl").unlink() if rank == 1 else None
    dist.barrier()
    resumed = answer_questions(module, QUESTIONS, p, folder=root / name, batch_size=2)
    examination = examine_stored(module, DOCUMENTS, root / "held_out", batch_size=2)
    dist.destroy_process_group()
    alone = {name: answer_questions(module, QUESTIONS, p, batch_size=2) for name, p in PROCEDURES.items()}
    assert shared == alone and len(set(alone["generation"].values())) > 1, (rank, shared, alone)
    assert resumed == alone[name]
    assert len(list((root / "generation").iterdir())) == len(list((root / "held_out").iterdir())) == 2
    assert examination == examine_stored(module, DOCUMENTS, None, batch_size=2)

name, p = "candidates", PROCEDURES["candidates"]
run_ranks(work, 2)
"""


def test_two_ranks_and_a_resumed_evaluation_give_the_answers_of_one_process(tmp_path: Path) -> None:
    finished = run_program(["-c", TWO, str(tmp_path)])
    assert finished.returncode == 0, finished.stderr[-2000:]
