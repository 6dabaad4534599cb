"""The template of captions."""

from __future__ import annotations

from typing import Any

import pytest

from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.prompts.plain import Plain
from lit_mm.prompts.prompt import PictureRun
from lit_mm.prompts.rendered import to_text
from lit_mm.prompts.tokenizer import Tokenizer


def text_of(*turns: Turn) -> tuple[str, list[tuple[int, int]]]:
    return to_text(Plain().parts(Document("pair", turns)), "#")


def test_a_caption_of_a_conversation_and_that_of_a_page_are_alike(picture: Any) -> None:
    asked = Turn("user", ("describe", picture))
    assert text_of(asked, Turn("assistant", ("a dog",))) == ("#a dog\n", [(1, 7)])
    assert text_of(Turn("page", (picture, "a dog"))) == ("#a dog\n", [(1, 7)])


def test_a_caption_to_be_written_ends_with_the_pictures(tokenizer: Tokenizer, picture: Any) -> None:
    runs = Plain().runs(Document("pair", (Turn("user", (picture, "describe", picture)),)), tokenizer)
    assert runs[1:] == [PictureRun(0), PictureRun(1)]
    assert tokenizer.encode("\n")[0] in Plain().stop_ids(tokenizer)


def test_everything_behind_the_picture_is_learnt_and_there_is_no_eos(tokenizer: Tokenizer, picture: Any) -> None:
    *_, caption = Plain().runs(Document("pair", (Turn("page", (picture, "A red dog")),)), tokenizer)
    assert all(caption.learn) and tokenizer.eos_id not in caption.ids
    assert tokenizer.decode(caption.ids) == "A red dog\n"


def test_what_is_no_caption_is_refused(picture: Any) -> None:
    asked, said = Turn("user", (picture, "q")), Turn("assistant", ("a",))
    for turns in ((asked, said, asked, said), (Turn("user", ("q",)), said), ()):
        with pytest.raises(UserError, match="the plain template takes one caption"):
            text_of(*turns)
    with pytest.raises(UserError, match="a picture follows text"):
        text_of(Turn("page", ("a", picture)))
    with pytest.raises(UserError, match="its caption contains a picture"):
        text_of(asked, Turn("assistant", ("a", picture)))
