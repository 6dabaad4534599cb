"""Files and URLs: brace patterns, ranges, stamps."""

from __future__ import annotations

import os
import pickle

import fsspec
import pytest

from lit_mm.documents.sources import paths as names
from lit_mm.documents.sources import storage
from lit_mm.documents.sources.blobs import BytesBlob, FileBlob, SpanBlob
from lit_mm.errors import UserError


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("a.tar", ["a.tar"]),
        ("s-{08..11}.tar", ["s-08.tar", "s-09.tar", "s-10.tar", "s-11.tar"]),
        ("{9..10}", ["9", "10"]),
        ("s3://b/{x,y}/{0..1}.json", [f"s3://b/{a}/{n}.json" for a in "xy" for n in (0, 1)]),
    ],
)
def test_braces_name_files_in_order(pattern, paths):
    assert names.expand(pattern) == paths


@pytest.mark.parametrize(
    ("pattern", "message"), [("a{3..1}", "runs backwards"), ("a{b}", "hold 'b'"), ("{}", "hold ''")]
)
def test_a_pattern_that_names_nothing_is_refused(pattern, message):
    with pytest.raises(UserError, match=message):
        names.expand(pattern)


@pytest.mark.parametrize(
    ("folder", "name", "joined"),
    [
        ("a/b", "c.png", "a/b/c.png"),
        ("", "c.png", "c.png"),
        ("a", "/c.png", "/c.png"),
        ("memory://a/", "b/c.png", "memory://a/b/c.png"),
        ("memory://a", "/c.png", "/c.png"),
        ("a", "memory://c.png", "memory://c.png"),
    ],
)
def test_names_are_joined_to_folders_and_to_urls(folder, name, joined):
    assert names.join(folder, name) == joined


def test_ranges_are_read_from_files_and_urls_alike(tmp_path, memory):
    data = bytes(range(256)) * 40
    (tmp_path / "f").write_bytes(data)
    memory.pipe("/f", data)
    for path in (str(tmp_path / "f"), "memory://f"):
        assert storage.read_range(path, 300, 500) == data[300:800]
        assert storage.read_range(path, len(data) - 3, 50) == data[-3:]
        span = pickle.loads(pickle.dumps(SpanBlob(path, 1000, 600, "member")))
        assert span.read() == data[1000:1600]
        with span.open() as file:
            assert (file.read(4), file.tell()) == (data[1000:1004], 4)
            file.seek(-2, os.SEEK_END)
            assert file.read() == data[1598:1600]
            file.seek(10)
            file.seek(5, os.SEEK_CUR)
            assert file.read(1) == data[1015:1016]
        assert FileBlob(path).read() == data
    assert BytesBlob(data, "f", "m").open().read() == data


def test_a_new_version_of_a_file_is_opened_anew(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"old")
    first = storage.stamp(str(path))
    assert storage.read_range(str(path), 0, 3, first.digest) == b"old"
    (tmp_path / "g").write_bytes(b"new")
    os.replace(tmp_path / "g", path)
    second = storage.stamp(str(path))
    assert first.digest != second.digest
    assert storage.read_range(str(path), 0, 3, second.digest) == b"new"


@pytest.mark.parametrize("size", [100, 5_000_000])
def test_a_stamp_sees_size_time_and_sampled_bytes(tmp_path, size):
    path = tmp_path / "f"
    path.write_bytes(bytes(size))
    os.utime(path, ns=(0, 10))
    stamps = {storage.stamp(str(path)).digest}
    assert storage.stamp(str(path)).digest in stamps
    os.utime(path, ns=(0, 11))
    stamps.add(storage.stamp(str(path)).digest)
    path.write_bytes(bytes(size - 1) + b"x")
    os.utime(path, ns=(0, 10))
    stamps.add(storage.stamp(str(path)).digest)
    path.write_bytes(bytes(size + 1))
    os.utime(path, ns=(0, 10))
    stamps.add(storage.stamp(str(path)).digest)
    assert len(stamps) == 4
    assert storage.stamp(str(tmp_path / "absent")) is None


def test_a_remote_stamp_changes_with_its_content(memory):
    assert storage.stamp("memory://f") is None
    memory.pipe("/f", b"one")
    first = storage.stamp("memory://f")
    memory.pipe("/f", b"two")
    assert first.size == 3
    assert storage.stamp("memory://f").digest != first.digest


def test_a_scheme_that_nobody_knows_is_refused():
    with pytest.raises(UserError, match="the URL 'nowhere://a' cannot be opened"):
        storage.stamp("nowhere://a")


def test_a_pattern_at_a_url_names_its_files(memory, tmp_path, monkeypatch):
    for name in ("b.jsonl", "a.jsonl", "c.txt"):
        memory.pipe(f"/d/{name}", b"{}")
    assert names.expand("memory://d/*.jsonl") == ["memory:///d/a.jsonl", "memory:///d/b.jsonl"]
    assert names.expand("https://example.org/a.jsonl?x=[1]") == ["https://example.org/a.jsonl?x=[1]"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data[1].jsonl").write_text("{}")
    assert names.expand("data[1].jsonl") == ["data[1].jsonl"]  # a file of that very name
    with pytest.raises(UserError, match=r"no file matches 'memory://d/\*\.png'"):
        names.expand("memory://d/*.png")
