"""A plain folder with a jsonl."""

from __future__ import annotations

import pytest

from lit_mm.documents.sources import PictureFolder, SampleError
from lit_mm.errors import UserError


def test_questions_are_conversations_and_captions_pages(folder, write):
    write(
        [
            {"image": "wide.png", "question": "what colour?", "answer": "red"},
            {"images": ["wide.png", "tall.jpg"], "question": "which is taller?", "answer": "the second", "id": 7},
            {"image": "tall.jpg", "caption": "a red page"},
            {"question": "2 + 2?", "answer": "4"},
        ],
        "metadata.jsonl",
    )
    source = PictureFolder(str(folder) + "/")
    first, second, third, fourth = (source[n] for n in range(4))
    assert [turn.role for turn in first.turns] == ["user", "assistant"]
    assert (first.question, first.answer) == ("what colour?", "red")
    assert [(p.width, p.height) for p in second.pictures] == [(20, 10), (16, 32)]
    assert second.turns[0].parts[2] == "which is taller?"  # pictures come first
    assert (second.id, third.id) == ("7", "metadata.jsonl:3")
    assert [turn.role for turn in third.turns] == ["page"]
    assert third.turns[0].parts[1] == "a red page"
    assert fourth.pictures == ()
    assert source.name == "data"


def test_another_file_of_the_folder_can_be_named(folder, write):
    write([{"caption": "text"}], "heldout.json")
    assert PictureFolder(str(folder), file="heldout.json")[0].turns[0].text == "text"
    with pytest.raises(UserError, match=r"there is no data file .*metadata\.jsonl"):
        PictureFolder(str(folder))


@pytest.mark.parametrize(
    ("entry", "kind", "message"),
    [
        ({"image": "wide.png"}, "bad_entry", "with `question` and `answer`, or with `caption`"),
        ({"caption": "a", "question": "b"}, "bad_entry", "with `question` and `answer`, or with `caption`"),
        ({"question": "a"}, "bad_entry", "`answer` is a text"),
        ({"question": "a", "answer": 4}, "bad_entry", "`answer` is a text"),
        ({"question": "a", "answer": " "}, "empty_answer", "its answer is empty"),
        ({"caption": ""}, "empty_answer", "its caption is empty"),
        ({"caption": "a", "image": "wide.png", "images": ["tall.jpg"]}, "bad_entry", "has `image` and `images`"),
        ({"caption": "a", "image": "absent.png"}, "missing_file", "there is no image"),
        ({"caption": "a", "image": "damaged.png"}, "unreadable_image", "is not an image"),
    ],
)
def test_a_broken_line_is_named(folder, write, entry, kind, message):
    write([{"caption": "sound"}, entry], "metadata.jsonl")
    with pytest.raises(SampleError, match=rf"^metadata\.jsonl:2: .*{message}") as caught:
        PictureFolder(str(folder))[1]
    assert caught.value.kind == kind
