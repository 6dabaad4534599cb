"""A held-out share by arithmetic: the same rows everywhere, whatever is appended; trained and held-out rows differ."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lit_mm.documents.sources import LlavaConversations
from lit_mm.stream.split import Split, row_hashes


def source(folder: Path, count: int) -> LlavaConversations:
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    entries = [{"id": str(number), "conversations": turns} for number in range(count)]
    path = folder / f"{count}.json"
    path.write_text(json.dumps(entries))
    return LlavaConversations(str(path))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_MM_CACHE", str(tmp_path / "cache"))


def test_the_hashes_are_those_of_splitmix64():
    # the first outputs for seed 0 in the published reference implementation
    assert [hex(h) for h in row_hashes(3)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


def test_every_row_is_in_one_part(tmp_path):
    rows = source(tmp_path, 400)
    trained, held_out = (Split(rows, 0.1, is_held_out=flag) for flag in (False, True))
    ids = [[part[number].id for number in range(len(part))] for part in (trained, held_out)]
    assert sorted(ids[0] + ids[1], key=int) == [str(number) for number in range(400)]
    assert 20 <= len(held_out) <= 60
    assert len(Split(rows, 0.1, is_held_out=True, limit=7)) == 7
    assert held_out.where(0) == rows.where(int(held_out.numbers[0]))
    with pytest.raises(IndexError):
        held_out[len(held_out)]


def test_appended_rows_move_no_earlier_one(tmp_path):
    short = Split(source(tmp_path, 300), 0.1, is_held_out=True).numbers
    longer = Split(source(tmp_path, 500), 0.1, is_held_out=True).numbers
    np.testing.assert_array_equal(longer[longer < 300], short)


@pytest.mark.parametrize(("count", "share"), [(2, 0.001), (3, 0.001), (30, 1e-9)])
def test_a_small_share_holds_out_one_row(tmp_path, count, share):
    assert len(Split(source(tmp_path, count), share, is_held_out=True)) == 1
    assert len(Split(source(tmp_path, count), share, is_held_out=False)) == count - 1


@pytest.mark.parametrize(("count", "share"), [(1, 0.1), (2, 0.999), (9, 0.999999)])
def test_one_row_is_always_trained_on(tmp_path, count, share):
    assert len(Split(source(tmp_path, count), share, is_held_out=False)) == 1
    assert len(Split(source(tmp_path, count), share, is_held_out=True)) == count - 1
