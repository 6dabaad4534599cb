"""VILA's three corpora in the nano world."""

from __future__ import annotations

from collections import Counter

import pytest

from lit_mm.datamodules.nano_interleaved import NanoInterleaved, web_page
from lit_mm.documents.document import Document
from lit_mm.errors import UserError
from lit_mm.nano.skills import SKILLS


def documents(kind: str, count: int = 120) -> list[Document]:
    source = NanoInterleaved(kind, documents=count).source()
    return [source[number] for number in range(len(source))]


def test_half_of_the_pictures_are_in_pages_and_half_in_pairs() -> None:
    shown = Counter()
    for document in documents("interleaved", 400):
        assert [turn.role for turn in document.turns] == ["page"]
        shown[document.id.rsplit("/", 1)[0] == "train/web"] += len(document.pictures)
    assert 0.4 < shown[True] / shown.total() < 0.6


def test_each_picture_of_a_page_stands_before_its_own_transcript() -> None:
    unseen = 0
    for index in range(60):
        (turn,) = web_page(index, split="train", seed=0).turns
        for before, after in zip(turn.parts, turn.parts[1:], strict=False):
            if not isinstance(before, str):
                assert after == before.transcript
        texts = [part for part in turn.parts if isinstance(part, str)]
        unseen += len(texts) > len(turn.parts) - len(texts)
        assert 2 <= len(turn.parts) - len(texts) <= 4
    assert 15 < unseen < 45  # half of the pages have a sentence without a picture


def test_one_document_in_four_of_the_blend_is_text_alone() -> None:
    blend = documents("blended")
    assert sum(not document.pictures for document in blend) == len(blend) / 4
    assert {document.skill for document in blend if not document.pictures} == set(SKILLS)
    assert all(document.answer for document in blend)


@pytest.mark.parametrize("kind", ["captions", "interleaved", "blended"])
def test_ids_differ_and_a_document_is_the_same_every_time(kind: str) -> None:
    first, again = documents(kind), documents(kind)
    assert first == again
    assert len({document.id for document in first}) == len(first)


def test_held_out_questions_are_balanced_and_share_no_page_with_training() -> None:
    held = NanoInterleaved(heldout_documents=18).heldout()
    assert Counter(document.skill for document in held) == dict.fromkeys(SKILLS, 2)
    trained = {picture for document in documents("interleaved") for picture in document.pictures}
    assert not any(picture in trained for document in held for picture in document.pictures)


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(UserError, match="got 0 and 3"):
        NanoInterleaved(documents=0)
