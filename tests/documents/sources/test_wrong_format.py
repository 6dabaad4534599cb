"""A file that is read in the wrong format, and keys that name pictures and are not read."""

from __future__ import annotations

from typing import Any

import pytest

from lit_mm.documents.sources import SampleError, open_source
from lit_mm.documents.sources.check import check_source
from tests.documents.sources.test_conversations import llava, qwen, shape

REFUSED = "foreign_placeholder"


def kinds(path: str, format: str = "llava", **options: Any) -> list[str]:
    """Kinds of the errors, or the notes of a sound file."""
    errors: list[SampleError] = []
    summary = check_source("name", open_source({"format": format, "path": path, **options}), errors.append)
    return [error.kind for error in errors] or sorted(f"note: {note}" for note in summary.notes)


NOTE = ["note: literal_placeholder"]


@pytest.mark.parametrize(
    ("image", "question", "answer", "expected"),
    [
        # in a row with pictures anywhere in a question
        ("wide.png", "<image>\nwhat is <ImageHere> ?", "red", [REFUSED]),
        ("wide.png", "<ImageHere>what?", "red", [REFUSED]),
        ("wide.png", "<image1> what?", "red", [REFUSED]),
        ("wide.png", "<image_1><image_2> what?", "red", [REFUSED]),
        ("wide.png", "<IMAGE>what?", "red", [REFUSED]),
        ("wide.png", "<|vision_start|><|image_pad|><|vision_end|>what?", "red", [REFUSED]),
        ("wide.png", "<image>\na <video> and a picture", "red", [REFUSED]),
        # without pictures at the start or the end of a line
        (None, "<ImageHere>what?", "red", [REFUSED]),
        (None, "what?\n<ImageHere>", "red", [REFUSED]),
        (None, "one\n  <|image_pad|>  \ntwo", "red", [REFUSED]),
        (None, "<video>\nwhat happens?", "red", [REFUSED]),
        (None, "listen: <audio>", "red", [REFUSED]),
        (None, "see <img>wide.png</img> here", "red", [REFUSED]),
        # text
        (None, "what does <ImageHere> mean in XComposer?", "red", NOTE),
        (None, "use <video> or <audio> tags?", "red", NOTE),
        (None, "hello", "<video>\n</video>", NOTE),
        (None, "hello", "<img>wide.png</img>", NOTE),
        ("wide.png", "<image>write HTML", "<ImageHere>\n<video>", NOTE),
        (None, 'what does <img src="x"> do, and <img>?', "it shows <b>x</b>", []),
        ("wide.png", "<image>\nplain", "red", []),
    ],
)
def test_placeholders_of_other_formats_under_llava(write, image, question, answer, expected) -> None:
    assert kinds(write([llava(image, question, answer)])) == expected


@pytest.mark.parametrize(
    ("format", "question", "expected"),
    [
        ("qwen_vl", "<image>what?", [REFUSED]),
        ("qwen_vl", "Picture 1: <img>wide.png</img>\n<image>what?", [REFUSED]),
        ("qwen_vl", "<img>wide.png</img>what?", []),
        ("qwen_vl", "<Img>wide.png</Img>what?", [REFUSED]),
        ("xcomposer", "<image>what?", [REFUSED]),
        ("xcomposer", "<img>wide.png</img>what?", [REFUSED]),
        ("xcomposer", "the <image> tag", NOTE),
        ("messages", "<ImageHere>what?", [REFUSED]),
        ("query_response", "<img>wide.png</img>what?", [REFUSED]),
        ("folder", "<image>\nwhat?", [REFUSED]),
    ],
)
def test_placeholders_of_other_formats_elsewhere(write, folder, format, question, expected) -> None:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "red"}]
    entry = {
        "messages": {"messages": turns},
        "query_response": {"query": question, "response": "red"},
        "folder": {"image": "wide.png", "question": question, "answer": "red"},
    }.get(format, qwen(question, "red"))
    path = write([entry], "metadata.jsonl")
    assert kinds(str(folder) if format == "folder" else path, format) == expected


@pytest.mark.parametrize(
    ("format", "question", "remedy"),
    [
        ("llava", "<image_placeholder>q", "Write <image> in its place"),
        ("llava", "<image_1>q", "Write <image> in its place"),
        ("llava", "<ImageHere>q", "Correct `format`"),
        ("qwen_vl", "<|image_pad|>q", "Write <img>path</img> in its place"),
        ("query_response", "<img>wide.png</img>q", "Write <image> in its place and name the picture in `images`"),
        ("folder", "<image>\nq", "Remove it: the pictures of a row stand in front of its text"),
    ],
)
def test_the_remedy_for_a_placeholder_works(write, folder, format: str, question: str, remedy: str) -> None:
    entry = llava(None, question, "a") if format in ("llava", "qwen_vl") else {"question": question, "answer": "a"}
    path = write([entry], "metadata.jsonl")
    with pytest.raises(SampleError) as caught:
        open_source({"format": format, "path": str(folder) if format == "folder" else path})[0]
    assert caught.value.remedy.partition(", or declare")[0] == remedy


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("<image>", "x", []),
        ("how do I write <image> in SVG?", "<image>", ["note: literal_placeholder"]),
        ("<video>\n<ImageHere>", "x", []),
    ],
)
def test_rows_without_pictures_may_be_declared_text(write, question, answer, expected) -> None:
    path = write([llava(None, question, answer)])
    assert kinds(path) != expected
    source = open_source({"format": "llava", "path": path, "literal_placeholders": True})
    assert shape(source[0]) == [("user", [question]), ("assistant", [answer])]
    pictured = write([llava("wide.png", "<image>what?", "x")], "b.jsonl")
    assert kinds(pictured, literal_placeholders=True) == []
    assert open_source({"format": "llava", "path": pictured, "literal_placeholders": True})[0].pictures


@pytest.mark.parametrize(
    "answer",
    [
        "<box>(1,2),(3,4)",
        "(1,2),(3,4)</box>",
        "<ref>dog<box>(1,2),(3,4)</box>",
        "<box><box>(1,2),(3,4)</box>",
        "<quad>(1,2),(3,4),(5,6),(7,8)</box>",
        "<ref>dog</ref><box>(1,2),(3,4)</box> and <box>",
    ],
)
def test_a_region_that_is_not_closed_is_refused(write, answer: str) -> None:
    assert kinds(write([qwen("<img>wide.png</img>where?", answer)]), "qwen_vl") == ["bad_entry"]
    assert kinds(write([qwen("<img>wide.png</img>where?", "<ref>a</ref><box>(1,2),(3,4)</box>")]), "qwen_vl") == []


@pytest.mark.parametrize(
    "entry",
    [
        {"imgs": ["wide.png"]},
        {"Image": "wide.png"},
        {"image_path": "wide.png"},
        {"image_url": {"url": "wide.png"}},
        {"image_base64": "abc"},
        {"file_name": "wide.png"},
        {"imgae": "wide.png"},
        {"picture": "wide.png"},
        {"foto": "wide.png"},
        {"bild": ["tall.jpg"]},
        {"screen": {"bytes": "x", "path": None}},
        {"video": "clip.mp4"},
        {"videos": ["clip.mp4"]},
        {"audio": "a.wav"},
    ],
)
def test_a_key_that_names_a_picture_and_is_not_read_is_refused(write, entry: dict[str, Any]) -> None:
    path = write([llava(None, "what?", "red", **entry)])
    assert kinds(path) == ["unread_key"]
    key = next(iter(entry))
    with pytest.raises(SampleError, match=rf"^data\.jsonl:1: its `{key}` names"):
        open_source({"format": "llava", "path": path})[0]


@pytest.mark.parametrize(
    "entry",
    [
        {"images": "wide.png"},
        {"images": ["wide.png"]},
        {"image": ["wide.png"], "images": ["wide.png"]},
        {"image": {"path": "wide.png"}, "url": "https://example.org/wide.png"},
        {"image": "wide.png", "image_path": "/elsewhere/wide.png", "video": None},
    ],
)
def test_pictures_are_read_from_image_and_images(write, entry: dict[str, Any]) -> None:
    source = open_source({"format": "llava", "path": write([llava(None, "<image>what?", "red") | entry])})
    assert shape(source[0])[0] == ("user", [("wide.png", (20, 10)), "what?"])


@pytest.mark.parametrize(
    "entry",
    [
        {"image_id": "17"},
        {"file_name": "chat_17.json", "url": "https://example.org"},
        {"image": "", "images": []},
        {"video": "", "source": "web"},
        {"image_size": [3, 4], "images_count": 0},
    ],
)
def test_other_keys_are_no_pictures(write, entry: dict[str, Any]) -> None:
    assert kinds(write([llava(None, "what?", "red") | entry])) == []


@pytest.mark.parametrize(
    ("format", "entry", "guess"),
    [
        ("llava", {"messages": [{"role": "user", "content": "q"}]}, "messages"),
        ("messages", {"conversations": [{"from": "human", "value": "q"}]}, "llava"),
        ("messages", {"conversations": [{"from": "human", "value": "<ImageHere>q"}]}, "xcomposer"),
        ("query_response", {"conversations": [{"from": "human", "value": "<img>a.jpg</img>q"}]}, "qwen_vl"),
        ("obelics", {"text_list": ["a"], "image_info": []}, "mmc4"),
        ("mmc4", {"texts": ["a"], "images": [None]}, "obelics"),
        ("folder", {"query": "q", "response": "a"}, "query_response"),
        ("folder", {"instruction": "q", "output": "a", "images": ["wide.png"]}, "query_response"),
        ("messages", {"prompt": "q", "completion": "a"}, "query_response"),
        ("query_response", {"prompt": [{"role": "user"}], "completion": [{}], "query": None}, "messages"),
        ("llava", {"question": "q", "answer": "a", "image": "wide.png"}, "query_response"),
        ("llava", {"image": "wide.png", "caption": "a"}, "folder"),
        ("llava", {"texts": [{"user": "q", "assistant": "a"}], "images": [None]}, "messages"),
        ("obelics", {"texts": [{"user": "q", "assistant": "a"}], "images": [None]}, "messages"),
        ("llava", {"conversations": [{"role": "user", "content": [{"type": "text", "text": "q"}]}]}, "messages"),
    ],
)
def test_an_entry_of_another_format_is_answered_with_its_format(write, folder, format, entry, guess) -> None:
    path = write([entry], "metadata.jsonl")
    with pytest.raises(SampleError) as caught:
        open_source({"format": format, "path": str(folder) if format == "folder" else path})[0]
    assert caught.value.kind == "bad_entry"
    assert caught.value.remedy == f"Is its `format` {guess}?"


# --- turns that are not read as they are meant -----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("turn", "kind", "message"),
    [
        ({"from": "function_call", "value": "{}"}, "bad_entry", "turn 1 is a tool's"),
        ({"from": "observation", "value": "{}"}, "bad_entry", "turn 1 is a tool's"),
        ({"role": "tool", "content": "{}"}, "bad_entry", "turn 1 is a tool's"),
        ({"role": "assistant", "content": None, "tool_calls": [{}]}, "bad_entry", "turn 1 calls a tool"),
        (
            {"from": "human", "value": "q", "image": "wide.png"},
            "unread_key",
            "turn 1 has `image`, which names",
        ),
        ({"role": "user", "content": "q", "images": ["iVBORw0KGgo"]}, "unread_key", "is not read in a turn"),
        ({"from": "human", "value": "q", "video": "a.mp4"}, "unread_key", "turn 1 has `video`"),
        ({"from": "human", "value": "q", "foto": "a.jpg"}, "unread_key", "turn 1 has `foto`"),
        ({"from": "gpt", "value": "a", "weight": 0}, "unread_key", "turn 1 has `weight: 0`"),
        ({"from": "gpt", "value": "a", "weight": 0.5}, "unread_key", "every answer is learnt with weight 1"),
        ({"from": "gpt", "value": "a", "loss": False}, "unread_key", "turn 1 has `loss: False`"),
        ({"from": "gpt", "value": "a", "mask": True}, "unread_key", "turn 1 has `mask: True`"),
    ],
)
def test_tools_and_weights_of_turns_are_called_what_they_are(write, turn, kind, message) -> None:
    entry = {"id": "x", "conversations": [{"from": "human", "value": "q"}, turn, {"from": "gpt", "value": "b"}]}
    with pytest.raises(SampleError, match=message) as caught:
        open_source({"format": "llava", "path": write([entry])})[0]
    assert caught.value.kind == kind


def test_sharegpt_s_roles_and_system_are_read(write) -> None:
    turns = [{"from": "user", "value": "q", "weight": 0}, {"from": "chatgpt", "value": "a", "weight": 1, "mask": False}]
    source = open_source({"format": "llava", "path": write([{"id": "x", "system": "be kind", "conversations": turns}])})
    assert shape(source[0]) == [("system", ["be kind"]), ("user", ["q"]), ("assistant", ["a"])]
    turns = [
        {"from": "human", "value": "q", "role": None, "content": None, "weight": None},
        {"role": "assistant", "content": "a", "from": None, "value": None},
    ]
    source = open_source({"format": "llava", "path": write([{"id": "x", "conversations": turns}])})
    assert shape(source[0]) == [("user", ["q"]), ("assistant", ["a"])]
    turns = [{"role": "developer", "content": "s"}, {"role": "user", "content": "q"}, {"role": "model", "content": "a"}]
    source = open_source({"format": "llava", "path": write([{"id": "x", "conversations": turns}])})
    assert [role for role, _ in shape(source[0])] == ["system", "user", "assistant"]
    assert kinds(write([llava(None, "q", "a", tools="[{}]")])) == ["unread_key"]
