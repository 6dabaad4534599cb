"""Digests tell data that changed from data that were moved, touched or continued."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from lit_mm.documents.sources.digest import BLOCK, changes, digest_of, digest_of_file

ROWS = [{"id": str(number), "text": "word " * number} for number in range(5)]


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def source(*paths: Path | str, samples: int = 5) -> SimpleNamespace:
    class Files(SimpleNamespace):
        def __len__(self) -> int:
            return samples

    return Files(parts=[SimpleNamespace(path=str(path)) for path in paths])


def test_a_file_that_was_moved_or_touched_is_the_same(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(lines(ROWS))
    before = digest_of(source(file))
    os.utime(file, (1, 1))
    (tmp_path / "elsewhere").mkdir()
    shutil.move(file, tmp_path / "elsewhere/renamed.jsonl")
    assert changes(before, source(tmp_path / "elsewhere/renamed.jsonl")) == []
    assert json.loads(json.dumps(before)) == before  # it is kept in a manifest


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("rows.jsonl", lines(ROWS), lines([*ROWS, *ROWS[:2]])),
        ("rows.jsonl", lines(ROWS).rstrip(), lines([*ROWS, *ROWS[:2]])),
        ("rows.json", json.dumps(ROWS), json.dumps([*ROWS, *ROWS[:2]])),
        ("rows.json", json.dumps(ROWS, indent=2) + "\n", json.dumps([*ROWS, *ROWS[:2]], indent=2)),
    ],
)
def test_rows_behind_the_old_ones_are_named_as_that(tmp_path: Path, name: str, before: str, after: str) -> None:
    (tmp_path / name).write_text(before)
    kept = digest_of(source(tmp_path / name))
    (tmp_path / name).write_text(after)
    assert changes(kept, source(tmp_path / name, samples=7)) == [f"2 rows appended behind the old ones of {name!r}"]


@pytest.mark.parametrize(
    "after",
    [
        lines([ROWS[1], ROWS[0], *ROWS[2:]]),  # as long as before
        lines(ROWS[:4]),
        lines([*ROWS[:1], *ROWS]),
        lines(ROWS).replace("word", "ward", 1),
    ],
)
def test_any_other_change_of_an_annotation_file_is_a_change(tmp_path: Path, after: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(lines(ROWS))
    before = digest_of(source(file))
    size = file.stat().st_size
    file.write_text(after)
    assert changes(before, source(file)) == [f"'rows.jsonl' changed ({size:,} bytes before, {len(after):,} now)"]


def test_a_byte_anywhere_in_a_large_annotation_file_counts(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    data = bytearray(lines([{"text": "x" * 5000}] * 2000).encode())
    file.write_bytes(data)
    before = digest_of_file(str(file))["digest"]
    for place in (11, len(data) // 3, len(data) - 5000):
        data[place] ^= 1
        file.write_bytes(data)
        assert digest_of_file(str(file))["digest"] != before
        data[place] ^= 1


def test_a_shard_is_known_by_its_size_and_sampled_blocks(tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    data = bytearray(os.urandom(200 * BLOCK))
    file.write_bytes(data)
    before = digest_of(source(file))
    assert "rows" not in before["files"][0]
    os.utime(file, (1, 1))
    assert changes(before, source(file)) == []
    data[100] ^= 1
    file.write_bytes(data)
    assert changes(before, source(file)) == [f"'a.tar' changed ({len(data):,} bytes before, {len(data):,} now)"]
    file.write_bytes(data[:-1])
    assert changes(before, source(file)) == [f"'a.tar' changed ({len(data):,} bytes before, {len(data) - 1:,} now)"]


def test_shards_that_were_added_or_are_missing_are_named(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.tar" for number in range(6)]
    for path in paths:
        path.write_bytes(path.name.encode())
    two = digest_of(source(*paths[:2]))
    assert changes(two, source(*paths[:3])) == ["1 file appended: 2.tar"]
    assert changes(digest_of(source(*paths)), source(paths[0])) == ["5 files missing: 1.tar, 2.tar, 3.tar, 4.tar, ..."]
    assert len(changes(two, source(paths[1], paths[0]))) == 2  # another order is another stream


class Tagged(MemoryFileSystem):
    """A server that gives ETags and whose files are not read."""

    protocol = "tagged"
    tag = "one"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("tagged://", "memory://"))

    def info(self, path: str, **options: object) -> dict:
        return super().info(path, **options) | {"ETag": self.tag}

    def cat_file(self, *_: object, **__: object) -> bytes:
        raise AssertionError("it was read")


def test_a_remote_file_is_known_by_size_and_etag(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("tagged", Tagged, clobber=True)
    Tagged().pipe("/rows.jsonl", b"x" * 100)
    before = digest_of(source("tagged://rows.jsonl"))
    assert before["files"][0]["kind"] == "remote" and before["files"][0]["bytes"] == 100
    assert changes(before, source("tagged://rows.jsonl")) == []
    monkeypatch.setattr(Tagged, "tag", "two")
    assert changes(before, source("tagged://rows.jsonl")) == ["'rows.jsonl' changed (100 bytes before, 100 now)"]


def test_a_remote_file_without_an_etag_is_known_by_its_ends(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/digest/rows.jsonl", lines(ROWS).encode())
    before = digest_of(source("memory://digest/rows.jsonl"))
    memory.pipe("/digest/rows.jsonl", lines(ROWS).encode())  # touched
    assert changes(before, source("memory://digest/rows.jsonl")) == []
    memory.pipe("/digest/rows.jsonl", lines(ROWS[::-1]).encode())
    assert len(changes(before, source("memory://digest/rows.jsonl"))) == 1
    (tmp_path / "rows.jsonl").write_text(lines(ROWS))
    assert "only its size can be compared" in changes(before, source(tmp_path / "rows.jsonl"))[0]


def test_a_local_file_that_was_moved_to_a_url_is_read_as_before(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(lines(ROWS))
    before = digest_of(source(tmp_path / "rows.jsonl"))
    fsspec.filesystem("memory").pipe("/digest/moved.jsonl", lines(ROWS).encode())
    assert changes(before, source("memory://digest/moved.jsonl")) == []
