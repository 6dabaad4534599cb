"""Parquet files. Each row is an entry."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from lit_mm.documents.sources.errors import SampleError
from lit_mm.documents.sources.part import Part
from lit_mm.documents.sources.paths import is_url
from lit_mm.documents.sources.storage import open_file
from lit_mm.errors import UserError, first_line

LIMIT_GROUP = 1 << 28  # largest number of bytes of a row group


class ParquetRows(Part):
    """Reads rows of a .parquet as entries. The index has `ends` [G]: number of rows up to the end of each row group.

    Parquet has no access to a single row, so the row's group is decoded, and the last two groups stay in memory. A
    random page from a group of 300 MB takes 1.4 s and 900 MB of memory, from a group of 20 MB 0.04 s (measured).
    Reading a group as a stream would not help, because writers put a thousand rows into one data page. So large groups
    are refused.

    Args:
        columns: required columns, the only ones that are read; an empty list reads all columns.
        limit_group: largest number of bytes of these columns in a row group.
    Raises:
        UserError: the file is not parquet, lacks a column, or has a larger row group.
    """

    def __init__(
        self,
        path: str,
        expected: str,
        columns: Sequence[str] = (),
        limit_group: int = LIMIT_GROUP,
        unpacked: str | None = None,
    ) -> None:
        self.columns, self.limit_group = tuple(columns), limit_group
        super().__init__(path, expected, unpacked)

    def _open_index(self) -> dict[str, np.ndarray]:
        return self.scan()  # the file's own footer is the index

    def scan(self) -> dict[str, np.ndarray]:
        metadata = _parquet(self.file, self.digest, os.getpid()).metadata
        names = _parquet(self.file, self.digest, os.getpid()).schema_arrow.names
        missing = [column for column in self.columns if column not in names]
        if missing:
            near = difflib.get_close_matches(missing[0], names, n=1)
            advice = f"Is {near[0]!r} meant to be {missing[0]!r}" if near else "Is its `format` another one"
            raise UserError(f"{self.path!r} has no columns {missing}; it has {names}. {advice}?")
        self.columns = self.columns or tuple(names)
        groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
        for number, group in enumerate(groups):
            chunks = [group.column(at) for at in range(group.num_columns)]
            size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] in self.columns)
            if size > self.limit_group:
                raise UserError(
                    f"row group {number} of {self.path!r} has {group.num_rows} rows in {size / 1e6:.0f} MB. A whole "
                    f"group is read for each {self.expected}, and the limit is {self.limit_group / 1e6:.0f} MB. Write "
                    "the file with smaller groups (pyarrow.parquet.write_table(..., row_group_size=100)), or raise "
                    "`limit_group`"
                )
        return {"ends": np.cumsum(np.array([group.num_rows for group in groups], dtype=np.int64))}

    def __len__(self) -> int:
        return int(self.index["ends"][-1]) if len(self.index["ends"]) else 0

    def where(self, number: int) -> str:
        return f"{self.name}:row {number + 1}"

    def entry(self, number: int) -> dict[str, Any]:
        group, row = self._place(number)
        import pyarrow as pa

        try:
            table = _row_group(self.file, self.digest, os.getpid(), group, self.columns)
        except (pa.ArrowInvalid, OSError) as error:
            raise SampleError(
                f"row group {group} cannot be read ({first_line(error)})",
                where=self.where(number),
                kind="unreadable_shard",
                remedy="Replace the file",
            ) from error
        return {column: table.column(column)[row].as_py() for column in self.columns}

    def _place(self, number: int) -> tuple[int, int]:
        """Return the row group of a row, and the row's number inside it."""
        ends = self.index["ends"]
        group = int(np.searchsorted(ends, number, side="right"))
        return group, number - (int(ends[group - 1]) if group else 0)


# The process's id keeps a forked worker from sharing a file position or arrow's threads with its parent
@lru_cache(maxsize=32)
def _parquet(path: str, digest: str, process: int) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(open_file(path) if is_url(path) else path, pre_buffer=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path!r} is not a parquet file that can be read ({first_line(error)})") from error


@lru_cache(maxsize=2)  # a row group may hold a thousand pages with their pictures
def _row_group(path: str, digest: str, process: int, group: int, columns: tuple[str, ...]) -> Any:
    return _parquet(path, digest, process).read_row_group(group, columns=list(columns), use_threads=False)
