"""Arrow files: the tables that the `datasets` package saves to disk."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

import numpy as np

from lit_mm.documents.sources.part import Part
from lit_mm.documents.sources.paths import is_url
from lit_mm.errors import UserError, first_line


class ArrowRows(Part):
    """Reads the rows of a .arrow file as entries. The file is mapped into memory, so that rows are read one by one.

    Raises:
        UserError: the file is at a URL, or cannot be read.
    """

    def _open_index(self) -> dict[str, np.ndarray]:
        return self.scan()  # the number of rows alone: the file has an index of its own

    def scan(self) -> dict[str, np.ndarray]:
        if is_url(self.file):
            raise UserError(f"{self.path!r} is an arrow file at a URL: copy it here, or save the data set as parquet")
        return {"rows": np.array([_table(self.file, self.digest, os.getpid()).num_rows])}

    def __len__(self) -> int:
        return int(self.index["rows"][0])

    def where(self, number: int) -> str:
        return f"{self.name}:row {number + 1}"

    def entry(self, number: int) -> dict[str, Any]:
        (row,) = _table(self.file, self.digest, os.getpid()).slice(number, 1).to_pylist()
        return row


@lru_cache(maxsize=32)  # the process's id keeps arrow's memory pool from being shared with a forked worker
def _table(path: str, digest: str, process: int) -> Any:
    import pyarrow as pa

    try:
        return pa.ipc.open_stream(pa.memory_map(path)).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path!r} is not an arrow stream that can be read ({first_line(error)})") from error
