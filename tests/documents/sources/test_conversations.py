"""Conversations as LLaVA, Qwen-VL and XComposer write them."""

from __future__ import annotations

from typing import Any

import pytest

from lit_mm.documents.document import Document
from lit_mm.documents.sources import (
    LlavaConversations,
    QwenVLConversations,
    SampleError,
    Source,
    XComposerConversations,
)
from lit_mm.errors import UserError


def chat(*said: str, roles: tuple[str, str] = ("human", "gpt")) -> list[dict[str, str]]:
    return [{"from": roles[at % 2], "value": text} for at, text in enumerate(said)]


def llava(image: Any = "wide.png", *said: str, **more: Any) -> dict[str, Any]:
    entry = {"id": "one", "conversations": chat(*(said or ("<image>\nWhat colour is it?", "Red.")))}
    return entry | ({} if image is None else {"image": image}) | more


def qwen(*said: str, **more: Any) -> dict[str, Any]:
    return {"id": "one", "conversations": chat(*said, roles=("user", "assistant"))} | more


def shape(document: Document) -> list[tuple[str, list[Any]]]:
    """Summarise turns as roles and parts; a picture becomes its name and (width, height)."""
    return [
        (
            turn.role,
            [part if isinstance(part, str) else (part.path.name, (part.width, part.height)) for part in turn.parts],
        )
        for turn in document.turns
    ]


def broken(source: Source, number: int = 0) -> SampleError:
    with pytest.raises(SampleError) as caught:
        source[number]
    return caught.value


# --- LLaVA -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_llava_places_one_picture_several_or_none(write, name):
    several = llava(["wide.png", "tall.jpg"], "First <image>, then <image>\nWhich is taller?", "The second.")
    text = llava(None, "Hello", "Hi", "And you?", "Fine")
    source = LlavaConversations(write([llava(), several, text], name))
    assert len(source) == 3
    assert shape(source[0]) == [
        ("user", [("wide.png", (20, 10)), "\nWhat colour is it?"]),
        ("assistant", ["Red."]),
    ]
    first, second = ("wide.png", (20, 10)), ("tall.jpg", (16, 32))
    assert shape(source[1])[0] == ("user", ["First ", first, ", then ", second, "\nWhich is taller?"])
    assert [role for role, _ in shape(source[2])] == ["user", "assistant"] * 2
    assert source[2].pictures == ()
    assert (source[0].id, source[0].source) == ("one", "data")


def test_llava_s_own_order_puts_the_picture_in_front(write):
    path = write([llava("wide.png", "What colour is it?\n<image>", "Red.")])
    picture = ("wide.png", (20, 10))
    assert shape(LlavaConversations(path)[0])[0] == ("user", ["What colour is it?\n", picture])
    assert shape(LlavaConversations(path, image_first=True)[0])[0] == ("user", [picture, "\nWhat colour is it?"])


def test_llava_leaves_out_a_leading_answer(write):
    entry = {"id": "x", "conversations": chat("Hello", "Hi", "Bye")[1:]}
    entry["conversations"] = [{"from": "gpt", "value": "Welcome"}, *chat("Hello", "Hi")]
    assert shape(LlavaConversations(write([entry]))[0]) == [("user", ["Hello"]), ("assistant", ["Hi"])]


def test_pixels_are_those_of_the_named_file(write):
    picture = LlavaConversations(write([llava("tall.jpg")]))[0].pictures[0]
    assert tuple(picture.pixels().shape) == (3, picture.height, picture.width) == (3, 32, 16)
    assert picture.read().size == (16, 32)


@pytest.mark.parametrize(
    ("entry", "kind", "message"),
    [
        (llava("wide.png", "no place", "red"), "placeholder_mismatch", "0 x <image>, its `image` names 1"),
        (llava(["wide.png", "tall.jpg"]), "placeholder_mismatch", "1 x <image>, its `image` names 2"),
        (llava(None), "placeholder_mismatch", "1 x <image>, its `image` names 0"),
        (llava("wide.png", "<image> what?", " \n"), "empty_answer", "the answer in turn 1 is empty"),
        (llava("wide.png", "<image> what?"), "no_supervision", "nothing in it can be learnt"),
        (llava("absent.png"), "missing_file", "there is no image '.*absent.png'"),
        (llava("damaged.png"), "unreadable_image", "damaged.png' is not an image"),
        (llava(7), "bad_entry", "the name of an image is text, got 7"),
        ("[1, 2]", "bad_entry", "an entry is an object with a list `conversations`"),
        ({"id": "x", "conversations": [{"from": "human"}]}, "bad_entry", "turn 0 needs the keys 'from' and 'value'"),
        ({"id": "x", "conversations": [{"from": "cat", "value": "x"}]}, "bad_entry", "'from' is one of .* got 'cat'"),
        ('{"id": "x", ', "malformed_json", "the conversation is not JSON"),
    ],
)
def test_a_broken_conversation_is_named_by_file_and_line(write, entry, kind, message):
    source = LlavaConversations(write([llava(), "", entry]))
    assert source[0].id == "one"
    error = broken(source, 1)
    assert error.where == "data.jsonl:3"  # a blank line is a line
    assert error.kind == kind
    with pytest.raises(UserError, match=rf"^data\.jsonl:3: .*{message}"):
        raise error


def test_too_many_pixels_are_refused_by_the_header(write):
    path = write([llava("tall.jpg")])
    assert LlavaConversations(path, limit_pixels=512)[0].pictures[0].height == 32
    error = broken(LlavaConversations(path, limit_pixels=511))
    assert error.kind == "too_many_pixels"
    assert "16 x 32 = 512 pixels, at most 511" in str(error)


def test_an_image_that_breaks_after_it_was_listed_is_named_by_its_sample(write, folder):
    source = LlavaConversations(write([llava()]))
    picture = source[0].pictures[0]
    (folder / "wide.png").write_bytes((folder / "wide.png").read_bytes()[:45])
    with pytest.raises(SampleError, match=r"^data\.jsonl:1: .*wide\.png") as damaged:
        picture.pixels()
    assert (damaged.value.kind, damaged.value.sample_id) == ("unreadable_image", "one")
    (folder / "wide.png").unlink()
    with pytest.raises(SampleError, match="there is no image") as missing:
        picture.read()
    assert missing.value.kind == "missing_file"


# --- Qwen-VL ---------------------------------------------------------------------------------------------------------
def test_qwen_vl_reads_pictures_out_of_the_text_and_keeps_its_regions(write):
    asked = "Picture 1: <img>wide.png</img>\nPicture 2: <img>tall.jpg</img>\nWhere is the dog?"
    answer = "<ref>the dog</ref><box>(12,0),(999,640)</box>"
    document = QwenVLConversations(write([qwen(asked, answer)]))[0]
    assert shape(document) == [
        (
            "user",
            [
                "Picture 1: ",
                ("wide.png", (20, 10)),
                "\nPicture 2: ",
                ("tall.jpg", (16, 32)),
                "\nWhere is the dog?",
            ],
        ),
        ("assistant", [answer]),
    ]


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        ("<box>(0,0),(1000,9)</box>", "box_outside", r"\[1000\] not in 0 to 999"),
        ("<box>(-1,0),(9,9)</box>", "box_outside", r"\[-1\] not in 0 to 999"),
        ("<box>(9,0),(2,9)</box>", "box_outside", "corners the wrong way round"),
        ("<box>(0.1,0.2),(0.3,0.4)</box>", "bad_entry", "holds 2 points"),
        ("<box>(1,2)</box>", "bad_entry", "holds 2 points"),
        ("<quad>(1,2),(3,4),(5,6)</quad>", "bad_entry", "holds 4 points"),
        ("<quad>(1,2),(3,4),(5,6),(1,2000)</quad>", "box_outside", r"\[2000\]"),
    ],
)
def test_regions_outside_the_picture_are_refused(write, answer, kind, message):
    sound = "<box>(0,0),(999,999)</box><box>(1,1),(1,1)</box><quad>(0,0),(9,0),(9,9),(0,9)</quad>"
    asked = "<img>wide.png</img>where?"
    source = QwenVLConversations(write([qwen(asked, sound), qwen(asked, answer)]))
    assert source[0].answer == sound
    error = broken(source, 1)
    assert (error.kind, error.where) == (kind, "data.jsonl:2")
    with pytest.raises(SampleError, match=message):
        raise error


def test_an_unclosed_picture_and_a_foreign_key_are_refused(write):
    source = QwenVLConversations(write([qwen("<img>wide.png what?", "red"), qwen("what?", "red", image="wide.png")]))
    assert broken(source, 0).kind == "placeholder_mismatch"
    assert broken(source, 1).kind == "bad_entry"


# --- XComposer -------------------------------------------------------------------------------------------------------
def test_xcomposer_places_pictures_and_a_single_one_may_go_without(write):
    said = chat("<ImageHere> what colour ?", "red", roles=("user", "assistant"))
    unplaced = chat("what colour ?", "red", roles=("user", "assistant"))
    entries = [
        {"id": "a", "image": ["wide.png"], "conversations": said},
        {"id": "b", "image": "tall.jpg", "conversations": unplaced},
        {"id": "c", "image": ["tall.jpg", "wide.png"], "conversations": said},
    ]
    source = XComposerConversations(write(entries))
    assert shape(source[0])[0] == ("user", [("wide.png", (20, 10)), " what colour ?"])
    assert shape(source[1])[:2] == [("page", [("tall.jpg", (16, 32))]), ("user", ["what colour ?"])]
    assert broken(source, 2).kind == "placeholder_mismatch"
