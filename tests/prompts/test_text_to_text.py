"""Texts for encoder and decoder of encoder-decoders."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from PIL import Image

from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.prompts.prompt import PictureRun, TextRun
from lit_mm.prompts.source import load_tokenizer
from lit_mm.prompts.text_to_text import TextToText

TOKENIZER = load_tokenizer("nano")


@dataclass(frozen=True)
class Patch:
    width: int = 4
    height: int = 4

    def read(self) -> Image.Image:
        return Image.new("RGB", (self.width, self.height))


def told(document: Document) -> list[tuple[str, bool] | int]:
    """Write runs as (text, supervised) and picture numbers."""
    runs = TextToText().runs(document, TOKENIZER)
    assert all(len(set(run.learn)) == 1 for run in runs if isinstance(run, TextRun))
    return [
        run.number if isinstance(run, PictureRun) else (TOKENIZER.decode(run.ids, skip_special=False), run.learn[0])
        for run in runs
    ]


def test_a_question_is_the_source_and_its_answer_is_learnt() -> None:
    document = Document("a", (Turn("user", ("what is on line 1?",)), Turn("assistant", ("KALO",))))
    assert told(document) == [("what is on line 1?", False), ("</s>", False), ("KALO</s>", True)]


def test_without_its_answer_a_document_ends_where_the_decoder_begins() -> None:
    document = Document("a", (Turn("user", ("what is on line 1?",)), Turn("assistant", ("KALO",))))
    assert told(document.without_answer()) == told(document)[:-1]


def test_earlier_turns_are_source_and_pictures_stay_in_their_places() -> None:
    first = Turn("user", ("look ", Patch(), " and ", Patch()))
    turns = (first, Turn("assistant", ("KALO",)), Turn("user", ("where?",)), Turn("assistant", ("top",)))
    expected = [("look ", False), 0, (" and ", False), 1, ("\nKALO\nwhere?", False), ("</s>", False), ("top</s>", True)]
    assert told(Document("a", turns)) == expected


def test_the_end_token_stops_decoding() -> None:
    assert TextToText().stop_ids(TOKENIZER) == {TOKENIZER.id_of("</s>")}


def test_running_text_is_refused() -> None:
    with pytest.raises(UserError, match="user turn"):
        told(Document("a", (Turn("page", ("a caption",)),)))


def test_a_picture_in_the_answer_is_refused() -> None:
    with pytest.raises(UserError, match="answer contains a picture"):
        told(Document("a", (Turn("user", ("draw",)), Turn("assistant", (Patch(),)))))
