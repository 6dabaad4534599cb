from __future__ import annotations

import math
from pathlib import Path

import pytest

from lit_mm.callbacks.step_table import TYPES, StepTable, read_rows
from lit_mm.errors import UserError


def table(path: Path) -> StepTable:
    return StepTable(path / "table.csv", ["step", "stage", "loss"])


def fill(rows: StepTable, last: int) -> None:
    rows.restart(0)
    for step in range(1, last + 1):
        rows.append({"step": step, "stage": "a, b", "loss": math.pi / step})


def test_a_float_reads_back_to_the_same_bits_and_a_comma_stays_in_its_cell(tmp_path: Path):
    fill(table(tmp_path), 3)
    assert read_rows(tmp_path / "table.csv") == [{"step": s, "stage": "a, b", "loss": math.pi / s} for s in (1, 2, 3)]


def test_a_restart_takes_back_the_rows_after_its_step(tmp_path: Path):
    fill(table(tmp_path), 5)
    assert [row["step"] for row in table(tmp_path).restart(3)] == [1, 2, 3]
    assert [row["step"] for row in read_rows(tmp_path / "table.csv")] == [1, 2, 3]


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_file_cut_anywhere_in_its_last_two_lines_restarts_with_the_whole_lines(tmp_path: Path, cut: int):
    rows = table(tmp_path)
    fill(rows, 4)
    content = rows.path.read_bytes()
    rows.path.write_bytes(content[:-cut])
    kept = table(tmp_path).restart(10)
    assert len(kept) == content[:-cut].count(b"\n") - 1
    rows.append({"step": 9, "stage": "a", "loss": 1.0})
    assert [row["step"] for row in read_rows(rows.path)] == [*(row["step"] for row in kept), 9]


def test_a_file_whose_header_was_cut_starts_anew(tmp_path: Path):
    rows = table(tmp_path)
    rows.path.write_text("step,sta")
    assert rows.restart(0) == []
    assert rows.path.read_text() == "step,stage,loss\n"


def test_a_file_with_other_columns_is_refused_with_both(tmp_path: Path):
    fill(table(tmp_path), 1)
    with pytest.raises(UserError, match=r"'loss'.*'other'"):
        StepTable(tmp_path / "table.csv", ["step", "stage", "other"]).restart(1)


def test_a_column_without_a_name_of_an_earlier_version_is_dropped(tmp_path: Path):
    rows = table(tmp_path)
    rows.path.write_text("step,stage,loss,\n1,a,0.5,0.25\n")
    assert rows.restart(1) == [{"step": 1, "stage": "a", "loss": 0.5}]
    assert rows.path.read_text() == "step,stage,loss\n1,a,0.5\n"


def test_a_line_that_cannot_be_read_is_named(tmp_path: Path):
    (tmp_path / "table.csv").write_text("step,stage,loss\n1,a,0.5\n2,a,half\n")
    with pytest.raises(UserError, match="line 3"):
        read_rows(tmp_path / "table.csv")
    (tmp_path / "table.csv").write_text("step,stage,loss\n1,a\n")
    with pytest.raises(UserError, match="line 2: 2 cells for 3 columns"):
        read_rows(tmp_path / "table.csv")


def test_columns_must_differ(tmp_path: Path):
    with pytest.raises(UserError, match="differ from each other"):
        StepTable(tmp_path / "table.csv", ["step", "stage", "stage"])


@pytest.mark.parametrize("data", [b"\xff\xfe\n1\n", b"loss,step\n1,2\n", b"\x00\n"])
def test_a_damaged_table_is_the_users_to_move_away(tmp_path: Path, data: bytes):
    (tmp_path / "table.csv").write_bytes(data)
    with pytest.raises(UserError, match=r"table.csv' is damaged") as refusal:
        read_rows(tmp_path / "table.csv")
    assert "\n" not in str(refusal.value)


def test_a_column_that_earlier_files_lack_is_empty_in_their_rows(tmp_path: Path):
    fill(table(tmp_path), 2)
    grown = StepTable(tmp_path / "table.csv", ["step", "stage", "note", "loss"], {**TYPES, "note": str}, new=("note",))
    assert [row["note"] for row in grown.restart(2)] == ["", ""]
    assert [row["note"] for row in grown.restart(2)] == ["", ""]


def test_a_table_that_grows_gets_a_column_for_a_new_name_and_keeps_it_after_a_restart(tmp_path: Path):
    path = tmp_path / "t.csv"
    table = StepTable(path, ["step", "loss"], grows=True)
    table.restart(0)
    table.append({"step": 1, "loss": 0.1})
    table.append({"step": 2, "loss": 0.2, "mine": 3.0})
    again = StepTable(path, ["step", "loss"], grows=True)
    assert [row["step"] for row in again.restart(1)] == [1]
    again.append({"step": 2, "loss": 0.2, "mine": 4.0})
    again.append({"step": 3, "loss": 0.3})
    assert path.read_text() == "step,loss,mine\n1,0.1,nan\n2,0.2,4.0\n3,0.3,nan\n"
    with pytest.raises(UserError, match="belongs to another run"):
        StepTable(path, ["step", "loss"]).restart(2)
