"""Data files are read by byte offsets."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from lit_mm.documents.sources import SampleError
from lit_mm.documents.sources.entries import open_entries
from lit_mm.documents.sources.json_files import JsonLines, JsonList
from lit_mm.documents.sources.tar import split_member
from lit_mm.errors import UserError

AWKWARD = [
    {"a": 'quotes " and \\" brackets ]}[{ in a text', "b": [1, [2, {"c": []}]]},
    {"ends": "in a backslash \\"},
    {"text": "ünï\n码", "n": -1.5e3},
    [],
    "a text",
    "",
    3,
    None,
    True,
]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_any_value_of_a_list_is_found_by_its_offsets(folder, indent, ascii_only):
    path = folder / "data.json"
    path.write_text(json.dumps(AWKWARD, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    part = JsonList(str(path), "entry")
    assert [part.entry(n) for n in range(len(part))] == AWKWARD


def test_an_element_of_a_list_is_named_by_its_line_and_where_that_has_several_by_its_number(folder):
    (folder / "data.json").write_text('[\n {"a":\n  1},\n\n {"b": "\\n"}, {"c": 3},\n 4\n]')
    part = JsonList(str(folder / "data.json"), "entry")
    assert [part.where(n) for n in range(4)] == [
        "data.json:2",
        "data.json:5 (entry 2)",
        "data.json:5 (entry 3)",
        "data.json:6",
    ]
    assert JsonList(str(folder / "data.json"), "entry").where(2) == "data.json:5 (entry 3)"  # from the kept index


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_are_numbered_as_an_editor_does(folder, end):
    path = folder / "data.jsonl"
    lines = [json.dumps(value) for value in AWKWARD]
    path.write_bytes(end.join([lines[0], "", "   ", *lines[1:], ""]).encode())
    part = JsonLines(str(path), "entry")
    assert [part.entry(n) for n in range(len(part))] == AWKWARD
    assert [part.where(n) for n in (0, 1)] == ["data.jsonl:1", "data.jsonl:4"]


@pytest.mark.parametrize("kind", [JsonLines, JsonList])
def test_a_byte_order_mark_is_no_content(folder, kind):
    path = folder / f"data.{'json' if kind is JsonList else 'jsonl'}"
    path.write_text("[3, 4]" if kind is JsonList else "3\n4\n", encoding="utf-8-sig")
    part = kind(str(path), "entry")
    assert [part.entry(n) for n in range(len(part))] == [3, 4]


def test_files_that_were_joined_have_byte_order_marks_inside(folder):
    (folder / "data.jsonl").write_bytes(b"\xef\xbb\xbf3\r\n\xef\xbb\xbf4\r\n\xef\xbb\xbf\r\n")
    part = JsonLines(str(folder / "data.jsonl"), "entry")
    assert [part.entry(n) for n in range(2)] == [3, 4]


def test_lines_across_the_blocks_that_are_searched_are_whole(folder, monkeypatch):
    monkeypatch.setattr("lit_mm.documents.sources.json_files.SCAN", 7)
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps({"n": n, "fill": "x" * (n % 11)}) + "\n" for n in range(50)))
    part = JsonLines(str(path), "entry")
    assert [part.entry(n)["n"] for n in range(len(part))] == list(range(50))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no page"),
        (" [ ] ", "holds no page"),
        ('{"a": 1}', "holds dict, expected a list of pages"),
        ("[1, 2", "is not JSON"),
        ('[{"a": "x}]', "is not JSON"),
        ("[1] [2]", "is not JSON"),
        ("[1]]", "is not JSON"),
        ("no", "is not JSON"),
    ],
)
def test_a_file_that_is_no_list_is_refused(folder, text, message):
    (folder / "data.json").write_text(text)
    with pytest.raises(UserError, match=message):
        JsonList(str(folder / "data.json"), "page")


def test_a_broken_element_leaves_the_others_sound(folder):
    (folder / "data.json").write_text('[{"a": 1}, {"a": oops}, {"a": 3}]')
    part = JsonList(str(folder / "data.json"), "entry")
    assert (part.entry(0), part.entry(2)) == ({"a": 1}, {"a": 3})
    with pytest.raises(SampleError, match=r"^data\.json:1 \(entry 2\): the entry is not JSON") as caught:
        part.entry(1)
    assert caught.value.kind == "malformed_json"


def test_bytes_that_are_no_text_are_told_of(folder):
    (folder / "data.jsonl").write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(SampleError, match=r"data\.jsonl:1: the entry is not UTF-8 at byte 7"):
        JsonLines(str(folder / "data.jsonl"), "entry").entry(0)


def test_a_file_that_was_cut_after_it_was_opened_is_told_of(folder):
    path = folder / "data.jsonl"
    path.write_text('{"a": 1}\n{"a": 2222}\n')
    part = JsonLines(str(path), "entry")
    with path.open("r+b") as file:
        file.truncate(12)
    with pytest.raises(SampleError, match="the file ends inside this entry") as caught:
        part.entry(1)
    assert caught.value.kind == "unreadable_shard"


def test_opening_again_reads_the_index_and_no_entry(folder, monkeypatch):
    path = folder / "data.jsonl"
    path.write_text("".join(f'{{"n": {n}}}\n' for n in range(1000)))
    JsonLines(str(path), "entry")
    monkeypatch.setattr(JsonLines, "scan", lambda self: pytest.fail("scanned again"))
    part = JsonLines(str(path), "entry")
    assert len(part) == 1000
    assert part.entry(999) == {"n": 999}
    assert isinstance(part.index["spans"], np.memmap)


def test_a_changed_file_is_indexed_anew(folder):
    path = folder / "data.jsonl"
    path.write_text('{"n": 1}\n{"n": 2}\n')
    assert len(JsonLines(str(path), "entry")) == 2
    path.write_text('{"n": 1} \n {"n":3}\n{"n": 4}\n')
    part = JsonLines(str(path), "entry")
    assert [part.entry(n)["n"] for n in range(len(part))] == [1, 3, 4]


def test_a_part_travels_to_workers(folder):
    path = folder / "data.jsonl"
    path.write_text('{"n": 1}\n{"n": 2}\n')
    part = pickle.loads(pickle.dumps(JsonLines(str(path), "entry")))
    assert part.entry(1) == {"n": 2}


def test_the_ending_decides_and_an_unknown_one_is_refused(folder):
    (folder / "data.ods").write_text("a,b")
    with pytest.raises(UserError, match=r"ends in '\.ods'; this format is read from \.jsonl, \.ndjson, "):
        open_entries(str(folder / "data.ods"), "entry")
    with pytest.raises(UserError, match=r"there is no data file .*Correct the source's `path`"):
        open_entries(str(Path(folder) / "absent.json"), "entry")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("0017.jpg", ("0017", "jpg")),
        ("a.b/0017.seg.PNG", ("a.b/0017", "seg.png")),
        ("./x.txt", ("./x", "txt")),
        ("none", ("none", "")),
    ],
)
def test_a_member_s_key_ends_at_the_first_dot_of_its_name(name, parts):
    assert split_member(name) == parts
