"""The template of pages."""

from __future__ import annotations

from typing import Any

import pytest

from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.prompts.interleaved import Interleaved
from lit_mm.prompts.prompt import PictureRun
from lit_mm.prompts.rendered import to_text
from lit_mm.prompts.tokenizer import Tokenizer


def page(*parts: Any) -> Document:
    return Document("page", (Turn("page", parts),))


def test_pictures_stay_where_they_are_and_lose_the_space_beside_them(picture: Any) -> None:
    parts = Interleaved().parts(page("One dog. ", picture, " Two cats. Three. ", picture, "Four."), "</s>")
    text, spans = to_text(parts, "#")
    assert text == "One dog.#Two cats. Three.#Four.</s>"
    assert spans == [(0, 8), (9, 25), (26, 35)]


def test_all_text_is_learnt_with_the_end_but_without_bos(tokenizer: Tokenizer, picture: Any) -> None:
    bos, shown, text = Interleaved().runs(page(picture, "A red dog"), tokenizer)
    assert (bos.learn, shown, text.ids[-1]) == ([False], PictureRun(0), tokenizer.eos_id)
    assert all(text.learn)
    assert Interleaved().stop_ids(tokenizer) == {tokenizer.eos_id}


def test_a_page_of_pictures_alone_is_left_open(tokenizer: Tokenizer, picture: Any) -> None:
    assert Interleaved().runs(page(picture), tokenizer)[1:] == [PictureRun(0)]


def test_conversations_and_markers_in_the_text_are_refused() -> None:
    with pytest.raises(UserError, match="takes pages, got turns"):
        Interleaved().parts(Document("chat", (Turn("user", ("q",)),)), "</s>")
    with pytest.raises(UserError, match="end-of-sequence marker '</s>'"):
        Interleaved().parts(page("a</s>b"), "</s>")
