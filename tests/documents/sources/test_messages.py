"""Conversations in the forms of other tools, and tables of images."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from lit_mm.documents.sources import SampleError, open_source
from tests.documents.sources.test_conversations import shape
from tests.documents.sources.test_pages import parquet

WIDE, TALL = ("wide.png", (20, 10)), ("tall.jpg", (16, 32))
TEXT = {"type": "text", "text": "which?"}
ANSWER = {"role": "assistant", "content": "red"}


def user(*parts: Any, **more: Any) -> dict[str, Any]:
    content = parts[0] if len(parts) == 1 and isinstance(parts[0], str) else list(parts)
    return {"messages": [{"role": "user", "content": content}, ANSWER]} | more


@pytest.mark.parametrize(
    ("entry", "question"),
    [
        (user("which?"), ["which?"]),
        (user({"type": "image", "image": "wide.png"}, TEXT), [WIDE, "which?"]),
        (user({"type": "text", "text": "A "}, {"type": "image", "path": "wide.png"}, TEXT), ["A ", WIDE, "which?"]),
        (user({"type": "image_url", "image_url": {"url": "wide.png"}}, TEXT), [WIDE, "which?"]),
        (user({"type": "image_url", "image_url": "wide.png"}, TEXT), [WIDE, "which?"]),
        (user({"type": "input_image", "image_url": "wide.png"}, {"type": "input_text", "text": "x"}), [WIDE, "x"]),
        (user({"image": "wide.png"}, {"text": "which?"}), [WIDE, "which?"]),
        (user({"type": "image"}, {"type": "image"}, TEXT, images=["wide.png", "tall.jpg"]), [WIDE, TALL, "which?"]),
        (user({"type": "image", "text": None}, {**TEXT, "image": None}, images=["tall.jpg"]), [TALL, "which?"]),
        (user({"image": "wide.png"}, TEXT, images=["wide.png"]), [WIDE, "which?"]),
        (user("<image>A <image>which?", images=["wide.png", "tall.jpg"]), [WIDE, "A ", TALL, "which?"]),
        (user("which?", images=["wide.png"]), [WIDE, "which?"]),
        (
            {"prompt": [{"role": "user", "content": "q"}], "completion": [ANSWER]},
            ["q"],
        ),
        ({"texts": [{"user": "q", "assistant": "red"}], "images": ["wide.png", "tall.jpg"]}, [WIDE, TALL, "q"]),
        ({"conversations": user({"type": "image", "image": "wide.png"}, TEXT)["messages"]}, [WIDE, "which?"]),
        (user("which?", objects={"bbox": [[1, 2, 3, 4]]}), ["which?"]),
        ({"conversation": user("which?")["messages"]}, ["which?"]),
        (
            {
                "conversations": {"role": ["user", "assistant"], "content": ["<image>which?", "red"]},
                "image": "wide.png",
            },
            [WIDE, "which?"],
        ),
        ({"messages": json.dumps(user("which?")["messages"]), "images": '["wide.png"]'}, [WIDE, "which?"]),
    ],
)
def test_messages_place_their_pictures(write, entry: dict[str, Any], question: list[Any]) -> None:
    source = open_source({"format": "messages", "path": write([entry])})
    assert shape(source[0]) == [("user", question), ("assistant", ["red"])]
    assert source[0].id == "data.jsonl:1"


@pytest.mark.parametrize(
    ("entry", "kind", "message"),
    [
        (
            user({"type": "image"}, TEXT),
            "placeholder_mismatch",
            "without a name, and `images` names 0",
        ),
        (user({"type": "video", "video": "x.mp4"}, TEXT), "bad_entry", "turn 0 has a part of type 'video'"),
        (user({"image": "wide.png"}, {"text": "<image>q"}), "placeholder_mismatch", "its text has <image> too"),
        (user({"image": "wide.png"}, TEXT, images=["tall.jpg"]), "bad_entry", "and so does `images`"),
        (user("q", images=["wide.png", "tall.jpg"]), "placeholder_mismatch", "0 x <image>, its `images` names 2"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "tool", "content": "x"}]}, "bad_entry", "a tool's"),
        (
            {"messages": [{"role": "user", "content": "q"}, {**ANSWER, "content": " "}]},
            "empty_answer",
            "turn 1 is empty",
        ),
        ({"conversations": [{"from": "human", "value": "q"}]}, "bad_entry", "Is its `format` llava?"),
        ({"messages": [{"role": "user"}]}, "bad_entry", "turn 0 needs the keys 'role' and 'content'"),
        ({"messages": "which?"}, "bad_entry", "Write `messages` as a list, or as text of a JSON list"),
        ([ANSWER, ANSWER], "bad_entry", "Write the list of turns into an object, under its key `messages`"),
        (user("q", rejected_response="blue"), "unread_key", "its `rejected_response` is a worse answer"),
        (user("q", chosen=ANSWER, rejected=ANSWER), "unread_key", "its `rejected` is a worse answer"),
        (user("q", kto_tag=False), "unread_key", "has `kto_tag: false`, so its answer is not to be learnt"),
        (
            user("<ref-object>?", objects={"ref": ["a dog"], "bbox": [[1, 2]]}),
            "unread_key",
            "its text has <ref-object>",
        ),
    ],
)
def test_messages_that_do_not_fit_are_refused(write, entry: dict[str, Any], kind: str, message: str) -> None:
    with pytest.raises(SampleError) as caught:
        open_source({"format": "messages", "path": write([entry, entry])})[0]
    assert caught.value.kind == kind
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "turns"),
    [
        ({"query": "q", "response": "a"}, [["q"], ["a"]]),
        ({"query": "see <image>", "response": "a", "images": ["wide.png"]}, [["see ", WIDE], ["a"]]),
        ({"query": "q", "response": "a", "images": "wide.png"}, [[WIDE, "q"], ["a"]]),
        (
            {"query": "q", "response": "a", "history": [["h", "i"]], "system": "s", "images": ["wide.png", "tall.jpg"]},
            [["s"], [WIDE, TALL, "h"], ["i"], ["q"], ["a"]],
        ),
        ({"instruction": "q", "input": "", "output": "a", "image": "wide.png"}, [[WIDE, "q"], ["a"]]),
        (
            {"instruction": "q <image>", "input": "x", "output": "a", "images": ["wide.png"]},
            [["q ", WIDE, "\nx"], ["a"]],
        ),
        ({"instruction": "", "input": "x", "output": "a", "history": '[["h", "i"]]'}, [["h"], ["i"], ["x"], ["a"]]),
        ({"prompt": "q", "response": "a"}, [["q"], ["a"]]),
        ({"query": "q", "response": "a", "answer": "b", "question": "r", "label": False}, [["q"], ["a"]]),
        ({"prompt": "q", "completion": "a", "query": None}, [["q"], ["a"]]),
        ({"question": "q", "answer": "a", "image": "wide.png"}, [[WIDE, "q"], ["a"]]),
    ],
)
def test_queries_and_responses_are_conversations(write, entry: dict[str, Any], turns: list[Any]) -> None:
    source = open_source({"format": "query_response", "path": write([entry])})
    assert [parts for _, parts in shape(source[0])] == turns


@pytest.mark.parametrize(
    ("entry", "kind", "message"),
    [
        ({"query": "q"}, "bad_entry", "the texts `query` and `response`, `instruction` and `output`"),
        ({"problem": "q", "solution": "a"}, "bad_entry", "Rename the keys of its question and its answer"),
        ({"query": "q", "response": ""}, "empty_answer", "the answer in turn 1 is empty"),
        ({"query": "q", "response": "a", "history": [["x"]]}, "bad_entry", "is a pair of texts"),
        (
            {"query": "<image>", "response": "a", "images": ["wide.png", "tall.jpg"]},
            "placeholder_mismatch",
            "1 x <image>, its `images` names 2",
        ),
        ({"instruction": "q", "output": "a", "answer": "b", "question": "r"}, "bad_entry", "Keep one pair"),
        ({"prompt": "q", "completion": "a", "label": False}, "unread_key", "has `label: false`"),
        ({"question": "q", "answer": 4}, "bad_entry", "Write `answer` as text, in quotes"),
        (
            {"question": "q", "answer": ["a", "b"]},
            "bad_entry",
            "Write one text as `answer`, and a row for each further",
        ),
        ({"prompt": [ANSWER], "completion": [ANSWER]}, "bad_entry", "Is its `format` messages?"),
        ({"instruction": "q", "input": 5, "output": "a"}, "bad_entry", "Write `input` as text, in quotes"),
    ],
)
def test_queries_that_do_not_fit_are_refused(write, entry: dict[str, Any], kind: str, message: str) -> None:
    with pytest.raises(SampleError, match=message) as caught:
        open_source({"format": "query_response", "path": write([entry])})[0]
    assert caught.value.kind == kind


def test_tables_of_images_are_read_in_every_form(folder) -> None:
    image = {"bytes": (folder / "wide.png").read_bytes(), "path": None}
    turns = [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "a"}]
    tables = {
        "llava": {"id": "1", "image": image, "conversations": turns},
        "messages": {"images": [image], "texts": [{"user": "q", "assistant": "a", "source": "web"}]},
        "query_response": {"images": [image], "query": "q", "response": "a"},
        "folder": {"image": image, "question": "q", "answer": "a"},
    }
    for format, row in tables.items():
        path = parquet(folder / f"{format}.parquet", [row, row])
        declaration = {"format": format, "path": path}
        if format == "folder":
            declaration = {"format": format, "path": str(folder), "file": "folder.parquet"}
        document = open_source(declaration)[1]
        assert [part if isinstance(part, str) else part.width for part in document.turns[0].parts] == [20, "q"], format
        assert tuple(document.pictures[0].pixels().shape) == (3, 10, 20)


def test_rows_of_a_table_may_leave_columns_empty(folder) -> None:
    image = {"bytes": (folder / "wide.png").read_bytes(), "path": None}
    first = {"image": image, "question": "q", "answer": "a", "caption": None}  # the table has the columns of this row
    rows = [first, {"image": image, "caption": "c"}, {"caption": "alone"}]
    parquet(folder / "metadata.parquet", rows)
    source = open_source({"format": "folder", "path": str(folder)})
    assert [source[number].turns[0].text for number in range(3)] == ["q", "c", "alone"]
    chat = [{"role": "user", "content": "q"}, ANSWER]
    rows = [
        {"messages": chat, "images": [image], "texts": None, "prompt": None, "completion": None},
        {"texts": [{"user": "r", "assistant": "b"}], "images": [image]},
        {"prompt": chat[:1], "completion": chat[1:]},
    ]
    source = open_source({"format": "messages", "path": parquet(folder / "t.parquet", rows)})
    assert [(source[number].question, len(source[number].pictures)) for number in range(3)] == [
        ("q", 1),
        ("r", 1),
        ("q", 0),
    ]


def test_a_column_that_is_not_read_is_refused(folder) -> None:
    image = {"bytes": (folder / "wide.png").read_bytes(), "path": None}
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    path = parquet(folder / "t.parquet", [{"id": "1", "picture_of_it": image, "conversations": turns}])
    with pytest.raises(SampleError, match=r"t\.parquet:row 1: its `picture_of_it` names .* is not read") as caught:
        open_source({"format": "llava", "path": path})[0]
    assert caught.value.kind == "unread_key"


def test_pages_with_gaps_are_pages_with_fewer_pictures_where_the_source_says_so(write, folder) -> None:
    content = base64.b64encode((folder / "tall.jpg").read_bytes()).decode()
    pages = [
        {"texts": ["a", None, "b"], "images": [None, None, None]},
        {"texts": ["a", None, "b"], "images": [None, "absent.png", None]},
        {"texts": ["a", None, "b"], "images": [None, "wide.png", None]},
        {"texts": ["a", None, "b"], "images": [None, {"bytes": None, "path": None}, None]},
    ]
    source = open_source({"format": "obelics", "path": write(pages), "gaps": "drop"})
    assert [shape(source[number])[0][1] for number in range(4)] == [
        *[["a\n\nb"]] * 2,
        ["a", WIDE, "b"],
        ["a\n\nb"],
    ]
    assert source.build_index() == (2, 1)
    assert [len(source[number].pictures) for number in range(3)] == [0, 0, 1]
    strict = open_source({"format": "obelics", "path": write(pages)})
    with pytest.raises(SampleError, match="`gaps: drop` leaves out pictures that are missing"):
        strict[0]
    infos = [
        {"image_name": None, "image_base64": content, "matched_text_index": 1},
        {"image_name": "absent.png", "matched_text_index": 0},
        {"image_name": None, "raw_url": "https://example.org/gone.png", "matched_text_index": 0},
    ]
    page = {"text_list": ["One.", "Two."], "image_info": infos}
    source = open_source({"format": "mmc4", "path": write([page]), "gaps": "drop"})
    assert shape(source[0])[0][1] == ["One. ", ("data.jsonl", (16, 32)), "Two."]
    damaged = {"text_list": ["a"], "image_info": [{"image_name": "damaged.png", "matched_text_index": 0}]}
    source = open_source({"format": "mmc4", "path": write([damaged]), "gaps": "drop"})
    with pytest.raises(SampleError, match=r"damaged\.png"):  # a damaged file is no gap
        source[0]
