"""Files are written in one step."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lit_mm.run.files import write_whole


@pytest.mark.parametrize("content", ["Grüße\n", "Grüße\n".encode()], ids=["text", "bytes"])
def test_a_file_is_replaced_and_nothing_else_is_left(content: str | bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("earlier, and longer than what follows")
    write_whole(file, content)
    assert file.read_bytes() == "Grüße\n".encode()
    assert list(tmp_path.iterdir()) == [file]


def test_processes_that_write_the_same_file_do_not_disturb_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, replace = tmp_path / "a.txt", os.replace

    def overtaken(part: Path, place: Path) -> None:
        monkeypatch.setattr(os, "replace", replace)
        write_whole(file, "other")
        replace(part, place)

    monkeypatch.setattr(os, "replace", overtaken)
    write_whole(file, "own")
    assert file.read_text() == "own" and list(tmp_path.iterdir()) == [file]


def test_a_kill_before_the_last_step_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", kill)
    with pytest.raises(KeyboardInterrupt):
        write_whole(file, "new")
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_a_synced_file_is_on_the_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, names = tmp_path / "a.txt", []
    monkeypatch.setattr(os, "fsync", lambda _: names.append(file.exists()))
    write_whole(file, "new", synced=True)
    assert names == [False] and file.read_text() == "new"
