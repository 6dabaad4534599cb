"""Inputs that break readers: one bad sample each, with file and line, never a traceback or the end of a check."""

from __future__ import annotations

import base64
import bz2
import gzip
import json
import lzma
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_mm.documents.printable import brief, printable, visible
from lit_mm.documents.sources import SampleError, open_source
from lit_mm.documents.sources.check import check_source
from lit_mm.errors import UserError
from tests.documents.sources.conftest import image_bytes
from tests.documents.sources.test_conversations import llava, shape
from tests.documents.sources.test_pages import parquet

SOUND = llava(None, "Hello", "Hi", id="sound")


def faults(path: str, format: str = "llava", **options: Any) -> list[SampleError]:
    """The errors of a file whose last entry is sound; reading each sample says the same as the check."""
    source = open_source({"format": format, "path": path, **options})
    errors: list[SampleError] = []
    check_source("name", source, errors.append)
    assert source[len(source) - 1].id == "sound"
    for number in range(len(source) - 1):
        with pytest.raises(SampleError) as caught:
            source[number]
        assert str(caught.value) in [str(error) for error in errors]
    return errors


@pytest.mark.parametrize(
    ("entry", "kind", "message"),
    [
        (llava(None, "a \ud83d b", "x"), "malformed_text", r"the text of turn 0 holds the lone surrogate '\ud83d'"),
        (llava(None, "x", "\udc00"), "malformed_text", "at character 1"),
        (llava("a\ud83d.png"), "bad_entry", r"'a\ud83d.png' holds half a character"),
        (llava("wide.png\0"), "bad_entry", r"'wide.png\x00' holds a NUL character"),
        (llava("foo://x/a.png"), "unreadable_image", "'foo://x/a.png' cannot be opened: Protocol not known: foo"),
        (llava("gs://x/a.png"), "unreadable_image", "Please install gcsfs"),
        (llava("http://127.0.0.1:9/a.png"), "unreadable_image", "cannot be reached"),
        ('{"id": ' + "9" * 5000 + "}", "malformed_json", "the conversation cannot be read (Exceeds the limit"),
        (llava("absent.png", id="9" * 5000), "missing_file", "there is no image"),
        ("[" * 10**6, "malformed_json", "nested too deeply"),
        ('{"conversations": ' + "[" * 10**5 + "]" * 10**5 + "}", "malformed_json", "nested too deeply"),
        ('{"id": "x", "conversations": ' + "[" * 400 + "]" * 400 + "}", "bad_entry", "turn 0 needs the keys"),
        (llava("x" * 5000 + ".png"), "missing_file", "characters>.png"),
        (llava("/dev/zero"), "unreadable_image", "'/dev/zero' is a pipe, a socket or a device and not a file"),
        (llava(float("inf")), "bad_entry", "the name of an image is text, got inf"),
        ('{"id": "x", "image": "a.png", "image": "b.png"}', "duplicate_member", "has the key 'image' twice"),
        (
            '{"id": "x", "conversations": [{"from": "human", "value": "a", "value": "b"}]}',
            "duplicate_member",
            "'value'",
        ),
        (llava([None]), "bad_entry", "the name of an image is text, got None"),
        ({"id": "x", "conversations": ["a", "b"]}, "bad_entry", "turn 0 needs the keys 'from' and 'value'"),
        ({"id": "x", "conversations": [{"from": ["human"], "value": "a"}]}, "bad_entry", "got ['human']"),
    ],
    ids=range(20),
)
def test_it_is_one_bad_sample(write, entry: Any, kind: str, message: str) -> None:
    (error,) = faults(write([entry, SOUND]), places="foo, gs, http://127.0.0.1:9/, /dev")
    assert (error.where, error.kind) == ("data.jsonl:1", kind)
    assert message in str(error)
    assert len(str(error)) < 500
    str(error).encode("utf-8")  # it can be printed


def test_a_pipe_as_an_image_does_not_wait_for_a_writer(write, folder) -> None:
    os.mkfifo(folder / "pipe.png")
    (error,) = faults(write([llava("pipe.png"), SOUND]))
    assert "is a pipe, a socket or a device and not a file" in str(error)


def test_brackets_without_end_in_a_json_are_an_error_of_the_file(folder) -> None:
    for text in ("[" * 10**6, "[" * 10**6 + "]" * 10**6):
        (folder / "data.json").write_text(text)
        with pytest.raises(UserError, match="nested too deeply"):
            open_source({"format": "llava", "path": str(folder / "data.json")})[0]


def test_control_characters_of_samples_are_escaped_in_messages(write) -> None:
    (error,) = faults(write([llava("a\x1b[31m\u202e.png", id="\x1b[2J\nid"), SOUND]))
    assert error.reason.endswith(r"a\x1b[31m\u202e.png'")
    assert error.sample_id == r"\x1b[2J\nid"
    assert printable("a\tb\u2028c é 码 \ud83d") == r"a\tb\u2028c é 码 \ud83d"
    assert visible("a\tb\n\x1b]0;title\x07 \u202e") == "a\tb\n\\x1b]0;title\\x07 \\u202e"


def test_base64_is_in_no_message(write, folder) -> None:
    content = base64.b64encode((folder / "tall.jpg").read_bytes()).decode()
    lines = "\n".join(content[start : start + 76] for start in range(0, len(content), 76))
    for cell in (content + "!!", f"data:image/jpeg;base64,{content}!", f"data:video/mp4;base64,{content}"):
        (error,) = faults(write([llava(cell), SOUND]))
        assert content[:40] not in str(error)
    for key in ("image_base64", "foto"):
        for text in (content, lines):
            (error,) = faults(write([llava(None, "q", "a", **{key: text}), SOUND]))
            assert error.kind == "unread_key" and content[:20] not in str(error)
    assert brief({"a": b"123", "b": content}) == f"{{'a': <3 bytes>, 'b': '<{len(content)} characters>'}}"


@pytest.mark.parametrize("form", ["data uri", "raw", "lines", "struct", "url of a part"])
def test_a_picture_may_stand_in_its_field(write, folder, form: str) -> None:
    content = base64.b64encode((folder / "tall.jpg").read_bytes()).decode()
    cell = {
        "data uri": f"data:image/jpeg;base64,{content}",
        "raw": content.rstrip("="),
        "lines": "\n".join(content[start : start + 76] for start in range(0, len(content), 76)),
        "struct": {"bytes": content, "path": None},
        "url of a part": {"url": f"data:image/jpeg;base64,{content}"},
    }[form]
    source = open_source({"format": "llava", "path": write([llava(cell)])})
    assert shape(source[0])[0] == ("user", [("data.jsonl", (16, 32)), "\nWhat colour is it?"])
    assert tuple(source[0].pictures[0].pixels().shape) == (3, 32, 16)


# --- files that are not what they are called -------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data.jsonl", json.dumps([SOUND, SOUND], indent=1).encode()),
        ("data.jsonl", json.dumps([SOUND, SOUND]).encode()),
        ("data.jsonl", b"\xef\xbb\xbf \n" + json.dumps([SOUND, SOUND]).encode()),
        ("data.json", b"\n".join([json.dumps(SOUND).encode()] * 2)),
        ("data.json", b"\r\n".join([json.dumps(SOUND).encode()] * 2)),
        ("data.ndjson", b"\xef\xbb\xbf" + b"\r\n".join([json.dumps(SOUND).encode()] * 2) + b"\r\n"),
        ("data.JSON", json.dumps([SOUND, SOUND]).encode()),
    ],
)
def test_a_list_and_lines_are_told_apart_by_content(folder, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    source = open_source({"format": "llava", "path": str(folder / name)})
    assert [source[number].answer for number in range(len(source))] == ["Hi", "Hi"]


@pytest.mark.parametrize("name", ["data.jsonl.gz", "data.json.gz", "data.jsonl"])
def test_a_file_that_gzip_packed_is_read(folder, name: str) -> None:
    text = json.dumps([SOUND]) if "json." in name else json.dumps(SOUND)
    (folder / name).write_bytes(gzip.compress(text.encode()))
    source = open_source({"format": "llava", "path": str(folder / name)})
    assert (source[0].id, source.parts[0].where(0), source.name) == ("sound", f"{name}:1", "data")
    pictured = gzip.compress((json.dumps([llava()]) if "json." in name else json.dumps(llava())).encode())
    (folder / name).write_bytes(pictured)
    assert open_source({"format": "llava", "path": str(folder / name)})[0].pictures[0].width == 20  # beside the file
    (folder / name).write_bytes(pictured[:-20])
    with pytest.raises(UserError, match=r"cannot be unpacked .*Was it copied completely\?"):
        open_source({"format": "llava", "path": str(folder / name)})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.json", json.dumps([SOUND]).encode("utf-16"), "is UTF-16 or UTF-32, and text is read as UTF-8"),
        ("data.jsonl", json.dumps(SOUND).encode("utf-16-le"), "is UTF-16 or UTF-32"),
        ("data.json", json.dumps([SOUND]).encode("utf-16-be"), "is UTF-16 or UTF-32"),
        ("data.json", json.dumps([SOUND]).encode("utf-32"), "is UTF-16 or UTF-32"),
        ("data.json", b"PK\x03\x04rest", "cannot be unpacked"),
        ("data.jsonl", b"\x28\xb5\x2f\xfdrest", "cannot be unpacked"),
        ("data.jsonl.xz", b"\xfd7zXZ\x00rest", "cannot be unpacked"),
        ("data.json", json.dumps({"data": [SOUND]}).encode(), "Its key 'data' holds a list: write that list alone"),
        ("data.json", json.dumps(SOUND).encode(), "A single entry stands in brackets too"),
        ("data.parquet", b"no parquet at all", "is not a parquet file"),
    ],
)
def test_another_kind_of_file_is_called_by_its_name(folder, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_source({"format": "llava", "path": str(folder / name)})


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, None])
@pytest.mark.parametrize("name", ["data.jsonl", "metadata.csv", "t.parquet"])
def test_every_file_may_be_packed(folder, pack: Callable[[bytes], bytes] | None, name: str) -> None:
    row = {"image": "wide.png", "question": "q", "answer": "a"}
    content = {
        "data.jsonl": json.dumps(row).encode(),
        "metadata.csv": b"image,question,answer\nwide.png,q,a\n",
        "t.parquet": Path(parquet(folder / "t.parquet", [row])).read_bytes(),
    }[name]
    if pack is None:
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            archive.writestr(f"somewhere/{name}", content)
        packed = folder / f"{name}.zip"
    else:
        packed = folder / f"{name}.{ {gzip.compress: 'gz', bz2.compress: 'bz2', lzma.compress: 'xz'}[pack] }"
        packed.write_bytes(pack(content))
    document = open_source({"format": "folder", "path": str(folder), "file": packed.name})[0]
    assert (document.question, document.pictures[0].path) == ("q", folder / "wide.png")


def test_an_archive_of_several_files_is_refused(folder) -> None:
    with zipfile.ZipFile(folder / "data.jsonl.zip", "w") as archive:
        archive.writestr("a.jsonl", "{}")
        archive.writestr("b.jsonl", "{}")
    with pytest.raises(UserError, match="is a zip archive of 2 files: unpack it, and name one of them"):
        open_source({"format": "llava", "path": str(folder / "data.jsonl.zip")})


def test_globs_and_the_home_folder_are_expanded(folder, write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    write([llava(id="b")], "part-b.jsonl")
    write([llava(id="a")], "part-a.jsonl")
    source = open_source({"format": "llava", "path": "~/part-*.jsonl", "images": "~"})
    assert [source[number].id for number in range(2)] == ["a", "b"]
    assert source[0].pictures[0].path == folder / "wide.png"
    with pytest.raises(UserError, match=r"no file matches .*none-\*\.jsonl"):
        open_source({"format": "llava", "path": "~/none-*.jsonl"})


@pytest.mark.parametrize(
    ("name", "file"),
    [("sub\\c.png", "sub/c.png"), ("sub/c.png", "sub/c.png"), (".\\sub\\c.png", "sub/c.png"), ("a\\b.png", "a\\b.png")],
)
def test_a_backslash_separates_folders_where_the_file_lies_there(folder, write, name: str, file: str) -> None:
    (folder / "sub").mkdir()
    (folder / file).write_bytes(image_bytes(3, 4))
    source = open_source({"format": "llava", "path": write([llava(name)])})
    assert source[0].pictures[0].path.resolve() == (folder / file).resolve()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("WIDE.png", "There is 'wide.png': upper and lower case differ"),
        ("wide.PNG", "There is 'wide.png': upper and lower case differ"),
        ("nowhere/wide.png", "Is the path relative to another folder (`images`)?"),
    ],
)
def test_a_name_in_the_wrong_case_is_answered_with_the_right_one(write, name: str, remedy: str) -> None:
    (error,) = faults(write([llava(name), SOUND]))
    assert (error.kind, error.remedy) == ("missing_file", remedy)


def test_a_file_url_is_a_local_path(write, folder: Path) -> None:
    for declaration in (
        {"path": write([llava(f"file://{folder}/wide.png")], "a.jsonl")},
        {"path": f"file://{write([llava()], 'b.jsonl')}"},
        {"path": write([llava()], "c.jsonl"), "images": f"file://localhost{folder}"},
    ):
        source = open_source({"format": "llava", **declaration})
        assert source[0].pictures[0].path == folder / "wide.png"
