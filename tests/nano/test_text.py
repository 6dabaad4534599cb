"""Texts for the nano language models: transcripts with white space, and the two tasks."""

from random import Random

import pytest

from lit_mm.nano.text import reading_document, strew
from lit_mm.nano.world import SKILLS, caption_document, text_document
from lit_mm.prompts.source import load_tokenizer
from tests.tiny import PROMPT


def page_of(document):
    """Page and request of the first turn, without the random line breaks."""
    page, request = document.turns[0].text.rsplit("\n", 1)
    return " ".join(page.replace("\n", "").split(" ")), request


@pytest.mark.parametrize("skill", SKILLS)
def test_odd_documents_are_read_out_word_for_word(skill):
    for index in (1, 3, 5):
        document = reading_document(index, split="text", seed=0, skill=skill)
        page, request = page_of(document)
        assert document.answer == page
        assert request == caption_document(index // 2, split="text", seed=0, skill=skill).question
        assert not document.pictures


@pytest.mark.parametrize("skill", SKILLS)
def test_even_documents_keep_the_page_its_questions_and_their_answers(skill):
    for index in (0, 2, 4):
        document = reading_document(index, split="text", seed=0, skill=skill)
        source = text_document(index // 2, split="text", seed=0, skill=skill)
        page, request = page_of(document)
        assert f"{page} ; {request}" == source.turns[0].text
        assert document.turns[1:] == source.turns[1:]


def test_a_document_is_a_function_of_its_number_and_seed():
    documents = [reading_document(n, split="text", seed=0) for n in range(20)]
    assert documents == [reading_document(n, split="text", seed=0) for n in range(20)]
    assert documents != [reading_document(n, split="text", seed=1) for n in range(20)]
    assert len({document.id for document in documents}) == 20


def test_strewing_adds_line_breaks_between_items_and_nothing_else():
    text = "KALO 7 ; red star ; MIRU"
    strewn = [strew(text, Random(seed)) for seed in range(200)]
    assert {line.replace("\n", "") for line in strewn} == {text}
    assert max(line.count("\n") for line in strewn) > 4
    assert all("red star" in line and "KALO 7" in line for line in strewn)
    assert min(line.count("\n") for line in strewn) == 0
    assert not any("\n" * 4 in line for line in strewn)
    assert strew("", Random(0)) == ""


def test_its_prompt_is_written_and_learnt_as_in_training():
    tokenizer = load_tokenizer("nano")
    runs = PROMPT.runs(reading_document(0, split="text", seed=0), tokenizer)
    assert any(learn for run in runs for learn in run.learn)
