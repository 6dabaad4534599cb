"""Accuracy and the blind baseline."""

import pytest

from lit_mm.documents.document import Document, Turn
from lit_mm.evaluation.examiners import Answers, Examination, examine, without_sight
from lit_mm.evaluation.score import score
from lit_mm.inference.generate import share
from lit_mm.nano.world import question_document
from tests.preloaded import run_program
from tests.tiny import Noise, document, xcomposer2


def asked(identity, pictures, skill="s"):
    turns = (Turn("user", (*pictures, "colour ?")), Turn("assistant", ("red",)))
    return Document(identity, turns, skill=skill)


CASES = {
    "several of each skill": [asked(str(n), [Noise(n)], skill=str(n % 3)) for n in range(9)],
    "a skill with one document": [
        asked("a", [Noise(0)], "one"),
        asked("b", [Noise(1)], "two"),
        asked("c", [Noise(2)], "two"),
    ],
    "one document alone": [asked("a", [Noise(0), Noise(1)])],
    "two questions about each picture": [asked(str(n), [Noise(n // 2)]) for n in range(6)],
    "all about one picture": [asked(str(n), [Noise(0)]) for n in range(3)],
    "pages of several pictures": [asked("a", [Noise(0), Noise(1), Noise(2)]), asked("b", [Noise(3)])],
    "shared among pages": [asked("a", [Noise(0), Noise(1)]), asked("b", [Noise(1)]), asked("c", [Noise(2)])],
    "text among them": [asked("a", [Noise(0)]), asked("t", []), asked("b", [Noise(1)]), asked("u", [])],
    "generated pages": [question_document(n, split="heldout", seed=0) for n in range(18)],
}


@pytest.mark.parametrize("name", CASES)
def test_the_blind_baseline_never_shows_a_document_its_own_picture(name):
    documents = CASES[name]
    blind = without_sight(documents)
    for before, after in zip(documents, blind, strict=True):
        assert not any(picture in before.pictures for picture in after.pictures)
        assert len(after.pictures) == len(before.pictures)
        assert [turn.text for turn in after.turns] == [turn.text for turn in before.turns]
        assert (after.id, after.skill, after.answer) == (before.id, before.skill, before.answer)
        for picture in after.pictures:
            assert picture.read().size == (picture.width, picture.height)


def test_it_borrows_from_the_next_document_of_the_same_skill_where_it_can():
    documents = CASES["several of each skill"]
    shown = [document.pictures[0].seed for document in without_sight(documents)]
    assert shown == [3, 4, 5, 6, 7, 8, 0, 1, 2]


def test_a_model_is_right_where_its_answer_matches_and_scored_per_skill(monkeypatch):
    documents = [asked(str(n), [Noise(n)], skill=("read", "count")[n > 2]) for n in range(4)]
    said = {"0": "Red.", "1": "blue", "2": "red", "3": ""}
    monkeypatch.setattr("lit_mm.evaluation.examiners.answer", lambda module, asked, **_: [said[d.id] for d in asked])
    examination = Answers()(None, documents)
    predictions, found = examination.predictions, examination.figures
    assert [p.correct for p in predictions] == [True, False, True, False]
    assert (found.overall, found.count) == (0.5, 4)
    assert found.skills == {"read": pytest.approx(2 / 3), "count": 0.0}


def test_a_real_model_is_asked_about_the_other_pictures_when_it_is_blind():
    module = xcomposer2(trained=True)
    documents = [document(n, pictures=1, skill="s") for n in range(3)]
    blind = examine(module, documents, blind=True).predictions
    assert [p.document.pictures for p in blind] == [d.pictures for d in without_sight(documents)]
    assert [p.answer for p in blind] == [p.answer for p in examine(module, without_sight(documents)).predictions]
    assert [p.document.id for p in examine(module, documents).predictions] == [d.id for d in documents]


def test_nothing_asked_is_scored_as_nothing():
    assert score([]).count == 0


def test_a_family_may_name_another_examiner():
    module = xcomposer2()
    expected = Examination(score([]), ())
    module.examiner = lambda module, documents, **_: expected
    assert examine(module, []) is expected


@pytest.mark.parametrize(
    ("ranks", "equal", "expected"),
    [
        (1, False, [[[0, 1], [2, 3], [4]]]),
        (2, False, [[[0, 1], [4]], [[2, 3]]]),
        (2, True, [[[0, 1], [4]], [[2, 3], [4]]]),
        (4, True, [[[0, 1]], [[2, 3]], [[4]], [[4]]]),
    ],
)
def test_batches_are_shared_out_and_none_is_lost(ranks, equal, expected):
    batches = [[0, 1], [2, 3], [4]]
    assert [share(batches, rank, ranks, equal=equal) for rank in range(ranks)] == expected


TWO = """
import os, sys, torch
import torch.distributed as dist
from tests.forked import run_ranks
from tests.tiny import document, xcomposer2
from lit_mm.evaluation.examiners import examine

def work(rank):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    module = xcomposer2(trained=True)
    documents = [document(n, pictures=n % 2, skill="s") for n in range(7)]
    answers = [p.answer for p in examine(module, documents, batch_size=2).predictions]
    dist.destroy_process_group()
    alone = [p.answer for p in examine(module, documents, batch_size=2).predictions]
    assert answers == alone and len(set(answers)) > 1, (rank, answers, alone)

run_ranks(work, 2)
"""


def test_two_ranks_share_the_documents_and_both_get_the_answers_of_one_process():
    finished = run_program(["-c", TWO])
    assert finished.returncode == 0, finished.stderr[-2000:]
