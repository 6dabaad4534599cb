"""A CSV with one row per step that survives kill -9: a restart removes the rows that the run will write again."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_mm.errors import UserError
from lit_mm.run.files import write_whole

Row = dict[str, Any]
TYPES = {"step": int, "stage": str, "tokens": int, "samples": str}  # every other column is a float


class StepTable:
    """Appends rows to a CSV in the order of their `step`. Each row is written whole and at once.

    Args:
        path: path of the file, which the first `restart` creates.
        columns: names of the columns, fixed for the whole run; the first is `step`.
        types: column -> type of its cells; other columns contain floats.
        new: columns that files of earlier versions lack; their rows get an empty text or NaN.
        grows: True adds a column of floats behind these for every further name in a row. Rows without a value have nan.
    Raises:
        UserError: the first column is not `step`, or a column occurs twice.
    """

    def __init__(
        self,
        path: Path,
        columns: Sequence[str],
        types: Mapping[str, type] = TYPES,
        new: Collection[str] = (),
        grows: bool = False,
    ) -> None:
        if columns[0] != "step" or len(set(columns)) < len(columns):
            raise UserError(
                f"the columns of {str(path)!r} start with 'step' and differ from each other, got {list(columns)}"
            )
        self.path, self.columns, self.types, self.new, self.grows = path, list(columns), types, new, grows

    def restart(self, step: int) -> list[Row]:
        """Drop the rows after `step`, and a last line that a kill cut short. Returns the rows that stay.

        Raises:
            UserError: the file has other columns and thus belongs to another run.
        """
        rows = read_rows(self.path, self.types)
        header = list(rows[0]) if rows else []
        columns = [column for column in self.columns if column in header or column not in self.new]
        further = header[len(columns) :] if self.grows else []
        if rows and header != columns + further:
            raise UserError(
                f"{str(self.path)!r} has the columns {list(rows[0])}, but this run writes {self.columns}. The "
                "file belongs to another run. Choose another run folder"
            )
        self.columns += further
        empty = {name: "" if self.types.get(name) is str else float("nan") for name in self.new}
        remaining = [empty | row for row in rows if row["step"] <= step]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._write(remaining)
        return remaining

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row with one call, so that a kill leaves it whole or without its line end."""
        further = [name for name in row if name not in self.columns] if self.grows else []
        if further:
            rows = read_rows(self.path, self.types)
            self.columns += further
            self._write(rows)
        line = self._line_of(row)
        with self.path.open("a") as file:
            file.write(line)

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        write_whole(self.path, _line(self.columns) + "".join(self._line_of(row) for row in rows))

    def _line_of(self, row: Mapping[str, Any]) -> str:
        return _line([row.get(column, math.nan) if self.grows else row[column] for column in self.columns])


def read_rows(path: Path, types: Mapping[str, type] = TYPES) -> list[Row]:
    """Read the rows of a table; none if there is no file. A last line that a kill cut short is left out.

    So is a column without a name, which earlier versions wrote for documents without a skill.

    Raises:
        UserError: a line has too few or too many cells, or a cell has the wrong type.
    """
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
        header, *lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1]))) or [["step"]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{str(path)!r} is damaged ({error}). Move the file away and repeat the command. The rows of the "
            "file are lost, but the run continues"
        ) from error
    if header[:1] != ["step"]:
        raise UserError(
            f"{str(path)!r} is damaged: its first column is not `step`. Move the file away and repeat the command"
        )
    rows = []
    for number, cells in enumerate(lines, start=2):
        if len(cells) != len(header):
            raise UserError(
                f"{str(path)!r}, line {number}: {len(cells)} cells for {len(header)} columns. Remove the line"
            )
        try:
            rows.append({name: types.get(name, float)(cell) for name, cell in zip(header, cells, strict=True) if name})
        except ValueError as error:
            raise UserError(f"{str(path)!r}, line {number}: {error}. Remove the line") from error
    return rows


def _line(cells: Sequence[Any]) -> str:
    """Format one CSV line. Floats are written as their `repr`, which reads back to the same bits."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()
