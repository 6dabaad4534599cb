"""Comma-separated tables with a header line. Each record is an entry."""

from __future__ import annotations

import csv
import io

import numpy as np

from lit_mm.documents.sources.errors import SampleError
from lit_mm.documents.sources.json_files import BOM, SCAN
from lit_mm.documents.sources.part import Part
from lit_mm.documents.sources.storage import mapped, read_range
from lit_mm.errors import UserError


class CsvRows(Part):
    """Reads a .csv: names of columns, then records. A record has several lines if a quoted text holds line ends.

    The index has `spans` [N + 1, 3]: start and size in bytes and the first line of each record; record 0 is the header.

    Raises:
        UserError: the file has no header, or its header is not UTF-8.
    """

    def __init__(self, path: str, expected: str, unpacked: str | None = None) -> None:
        super().__init__(path, expected, unpacked)
        try:
            self.columns = self._record(0)
        except UnicodeDecodeError as error:
            raise UserError(f"{path!r} is not UTF-8 at byte {error.start}: save it as UTF-8") from error

    def scan(self) -> dict[str, np.ndarray]:
        """Find the records. A line end behind an odd number of quotes is inside a quoted text and ends no record."""
        with mapped(self.file) as buffer:
            stops, line_ends, num_quotes = [], [], 0
            for start in range(0, len(buffer), SCAN):
                block = np.frombuffer(buffer[start : start + SCAN], dtype=np.uint8)
                ends = np.flatnonzero(block == ord("\n"))
                quotes = np.cumsum(block == ord('"'), dtype=np.int64) + num_quotes
                stops.append(ends[quotes[ends] % 2 == 0] + start)
                line_ends.append(ends + start)
                num_quotes = int(quotes[-1])
            lines = np.concatenate([np.zeros(0, dtype=np.int64), *line_ends])
            stop = np.concatenate([np.zeros(0, dtype=np.int64), *stops, [len(buffer)]]).astype(np.int64)
            start = np.concatenate([[0], stop[:-1] + 1])
            if buffer[: len(BOM)] == BOM:
                start[0] = len(BOM)
            is_filled = [bool(buffer[first:last].strip()) for first, last in zip(start, stop, strict=True)]
            spans = np.stack([start, stop - start, np.searchsorted(lines, start) + 1], axis=1)
        return {"spans": spans[np.array(is_filled, dtype=bool)]}

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
            raise self._malformed(number, f"is not UTF-8 at byte {error.start}") from error
        except csv.Error as error:
            raise self._malformed(number, f"cannot be read ({error})") from error
        if len(cells) != len(self.columns):
            raise self._malformed(number, f"has {len(cells)} cells, the header names {len(self.columns)} columns")
        return {column: cell for column, cell in zip(self.columns, cells, strict=True) if cell}

    def _record(self, row: int) -> list[str]:
        start, size, _ = (int(n) for n in self.index["spans"][row])
        text = read_range(self.file, start, size, self.digest).decode("utf-8")
        return next(csv.reader(io.StringIO(text, newline="")), [])

    def _malformed(self, number: int, what: str) -> SampleError:
        return SampleError(
            f"the {self.expected} {what}",
            where=self.where(number),
            kind="bad_entry",
            remedy="Correct it, or leave it out",
        )
