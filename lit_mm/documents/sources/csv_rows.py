"""Tables of separated cells with a header line: .csv and .tsv. Each record is an entry."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from lit_mm.documents.printable import brief
from lit_mm.documents.sources import cache
from lit_mm.documents.sources.errors import SampleError
from lit_mm.documents.sources.json_files import BOM, NOT_UTF8, line_ends
from lit_mm.documents.sources.keys import IMAGE_NAME
from lit_mm.documents.sources.part import Part
from lit_mm.documents.sources.storage import mapped, read_range
from lit_mm.errors import UserError

LONGEST_CELL = 1 << 28  # characters; a cell may hold a picture as base64
SEPARATORS = {".csv": ",", ".tsv": "\t"}  # ending of a file -> separator of its cells
OTHERS = {";": "semicolons", "\t": "tabs", "|": "vertical bars", ",": "commas"}  # wrong separators in a header

CARRIAGE_RETURN = "a carriage return without a line feed behind it, as in files of old systems"
QUOTES = 'Close every quoted text, and write a quote inside of it twice ("")'


class CsvRows(Part):
    """Reads a .csv or .tsv: names of columns, then records. A record has several lines if a quoted text holds line
    ends. A quote opens a quoted text only at the beginning of a cell.

    The index has `spans` [N + 1, 3]: start and size in bytes and the first line of each record; record 0 is the header.

    Args:
        separator: character between two cells.
    Raises:
        UserError: the file has no header, its header is not UTF-8, has a name twice, or has another separator.
    """

    def __init__(self, path: str, expected: str, unpacked: str | None = None, separator: str = ",") -> None:
        self.separator = separator
        super().__init__(path, expected, unpacked)
        try:
            self.columns = [name.strip() for name in self._record(0)]
        except UnicodeDecodeError as error:
            raise UserError(f"{path!r} is not UTF-8 at byte {error.start}: save it as UTF-8") from error
        except csv.Error as error:
            raise UserError(f"the header of {path!r} cannot be read ({_plain(error)}). Correct it") from error
        self._check_columns()

    def _check_columns(self) -> None:
        repeated = [name for name, count in Counter(self.columns).items() if count > 1 and name]
        if repeated:
            raise UserError(
                f"the header of {self.path!r} has the column {brief(repeated[0])} twice: rename one of them"
            )
        if any(IMAGE_NAME.fullmatch(name) for name in self.columns):
            raise UserError(
                f"the header of {self.path!r} names an image, {brief(self.columns)}: it seems to be a row. Write a "
                "header before it, such as image,caption"
            )
        other = next((sign for sign in OTHERS if sign != self.separator and sign in self.columns[0]), None)
        if len(self.columns) == 1 and other is not None:
            raise UserError(
                f"the header of {self.path!r} is one cell, {brief(self.columns[0])}. The cells seem to be "
                f"separated by {OTHERS[other]}, but this ending is read with {OTHERS[self.separator]} (.csv: "
                "commas, .tsv: tabs). Save the file with other separators, or change its ending"
            )

    def _open_index(self) -> dict[str, np.ndarray]:
        key = cache.key_of(type(self).__name__, self.separator, self.digest)
        return cache.load(key) or cache.store(key, self.scan())

    def scan(self) -> dict[str, np.ndarray]:
        """Find the records with the reader that parses them later."""
        spans: list[tuple[int, int, int]] = []
        with mapped(self.file) as buffer:
            ends = line_ends(buffer) + 1
            stops = ends if len(ends) and ends[-1] == len(buffer) else np.append(ends, len(buffer))
            beginning = len(BOM) if buffer[: len(BOM)] == BOM else 0
            starts = np.concatenate([[beginning], stops[:-1]])
            header = bytes(buffer[: stops[0]]) if len(stops) else b""
            if b"\r" in header.rstrip(b"\r\n"):
                raise UserError(f"the header of {self.path!r} cannot be read ({CARRIAGE_RETURN}). Correct it")

            def lines() -> Iterator[str]:
                for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
                    yield bytes(buffer[start:stop]).decode("latin-1")  # one character for each byte

            reader = self._reader(lines())
            first = 0  # line of the record, counted from 0
            while first < len(stops):
                try:
                    cells = next(reader)
                except csv.Error:  # it is an error of this record, see `entry`
                    cells = ["?"]
                if len(cells) > 1 or any(cell.strip() for cell in cells):
                    start, stop = int(starts[first]), int(stops[reader.line_num - 1])
                    spans.append((start, stop - start, first + 1))
                first = reader.line_num
        return {"spans": np.array(spans, dtype=np.int64).reshape(-1, 3)}

    def _reader(self, lines: Iterator[str], *, strict: bool = False) -> Any:
        csv.field_size_limit(LONGEST_CELL)  # Python's limit, 131072, is one for all readers
        return csv.reader(lines, delimiter=self.separator, strict=strict)

    def __len__(self) -> int:
        return max(0, len(self.index["spans"]) - 1)

    def where(self, number: int) -> str:
        return f"{self.name}:{int(self.index['spans'][number + 1, 2])}"

    def entry(self, number: int) -> dict[str, str]:
        """Return column -> text of a record, without empty cells.

        Raises:
            SampleError: the record is not UTF-8, or has another number of cells than the header.
        """
        try:
            cells = self._record(number + 1)
        except UnicodeDecodeError as error:
            raise self._malformed(number, f"is not UTF-8 at byte {error.start}", NOT_UTF8) from error
        except csv.Error as error:
            raise self._malformed(number, self._reason(number, error), QUOTES) from error
        if len(cells) != len(self.columns):
            raise self._malformed(number, f"has {len(cells)} cells, the header names {len(self.columns)} columns")
        return {column: cell for column, cell in zip(self.columns, cells, strict=True) if cell}

    def _record(self, row: int) -> list[str]:
        start, size, _ = (int(n) for n in self.index["spans"][row])
        text = read_range(self.file, start, size, self.digest).decode("utf-8")
        return next(self._reader(iter([text]), strict=True), [])

    def _reason(self, number: int, error: csv.Error) -> str:
        """Return the reason for which a record cannot be parsed, with its last line if it has several."""
        start, size, line = (int(n) for n in self.index["spans"][number + 1])
        num_lines = len(line_ends(read_range(self.file, start, max(0, size - 1), self.digest))) + 1
        reaches = f" and reaches to line {line + num_lines - 1}" if num_lines > 1 else ""
        return f"cannot be read ({_plain(error)}){reaches}"

    def _malformed(self, number: int, what: str, remedy: str = "Correct it, or leave it out") -> SampleError:
        return SampleError(f"the {self.expected} {what}", where=self.where(number), kind="bad_entry", remedy=remedy)


def _plain(error: csv.Error) -> str:
    """Return the reason of an error of Python's reader, which names a parameter for one of them."""
    is_end = "new-line character" in str(error)
    return CARRIAGE_RETURN if is_end else str(error)
