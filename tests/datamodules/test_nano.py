"""The nano world as a data module."""

from collections import Counter
from dataclasses import replace

import pytest

from lit_mm.datamodules.nano import NanoDocuments, NanoSource
from lit_mm.errors import UserError
from lit_mm.nano.world import SKILLS


@pytest.mark.parametrize(("kind", "pictures"), [("captions", True), ("questions", True), ("text", False)])
def test_each_kind_has_as_many_documents_as_asked_and_what_it_promises(kind, pictures):
    source = NanoDocuments(kind=kind, documents=20).source()
    assert len(source) == 20
    documents = [source[n] for n in range(20)]
    assert documents == [NanoDocuments(kind=kind, documents=20).source()[n] for n in range(20)]
    assert all(bool(document.pictures) is pictures for document in documents)
    assert {document.skill for document in documents} == set(SKILLS)
    assert all(document.answer for document in documents)


def test_mixed_alternates_captions_and_questions_over_all_skills():
    source = NanoDocuments(kind="mixed", documents=18).source()
    documents = [source[n] for n in range(len(source))]
    assert len(documents) == 36
    assert [document.id.endswith("caption") for document in documents] == [True, False] * 18
    assert Counter(document.skill for document in documents) == {skill: 4 for skill in SKILLS}
    assert len({document.id for document in documents}) == 36


def test_captions_and_questions_of_a_run_are_about_different_pages():
    captions, questions = (NanoDocuments(kind=kind, documents=9).source() for kind in ("captions", "questions"))
    assert all(captions[n].pictures != questions[n].pictures for n in range(9))


@pytest.mark.parametrize("kind", ["captions", "questions", "text"])
def test_two_skills_are_both_drawn_in_every_form(kind):
    source = NanoDocuments(kind=kind, documents=40, skills=["count", "form"]).source()
    documents = [source[n] for n in range(40)]
    assert Counter(document.skill for document in documents) == {"count": 20, "form": 20}
    if kind == "text":  # a page to read out, or questions about it
        forms = {
            skill: {len(d.turns) > 2 or len(d.answer.split()) < 4 for d in documents if d.skill == skill}
            for skill in ("count", "form")
        }
        assert forms == {"count": {True, False}, "form": {True, False}}


def test_documents_of_a_skill_call_their_source_what_they_are_told_to():
    asked = {"kind": "questions", "count": 6, "split": "heldout", "seed": 0, "questions": 1}
    source = NanoSource(**asked, skills=("read_small", "count"), source_of={"read_small": "dense"})
    plain = NanoSource(**asked, skills=("read_small", "count"))
    for number in range(6):
        assert source[number] == replace(plain[number], source={"read_small": "dense"}.get(plain[number].skill, "nano"))
    with pytest.raises(UserError, match=r"`source_of` names \['form'\]"):
        NanoSource(**asked, skills=("count",), source_of={"form": "dense"})


def test_the_heldout_set_is_balanced_asks_one_question_and_shares_no_page():
    data = NanoDocuments(documents=90, heldout_documents=45)
    heldout = data.heldout()
    assert Counter(document.skill for document in heldout) == {skill: 5 for skill in SKILLS}
    assert all(len(document.turns) == 2 for document in heldout)
    assert data.heldout(10) == heldout[:10]
    source = data.source()
    shown = {picture.transcript for n in range(90) for picture in source[n].pictures if picture.kind != "count"}
    assert not shown & {picture.transcript for document in heldout for picture in document.pictures}


def test_none_held_out_means_none():
    data = NanoDocuments(heldout_documents=0)
    assert data.heldout() == data.heldout(1) == []
    assert NanoDocuments().heldout(0) == []


def test_an_unknown_skill_and_an_empty_set_are_refused():
    with pytest.raises(UserError, match=r"no skills \['fly'\].*`data\.init_args\.skills`"):
        NanoDocuments(skills=["count", "fly"])
    with pytest.raises(UserError, match=r"`data\.init_args\.documents` is 0"):
        NanoDocuments(documents=0)
