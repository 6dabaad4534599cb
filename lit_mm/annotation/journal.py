"""The journal of an unfinished shard: one line per finished batch, so that a killed run repeats no batch."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from lit_mm.errors import UserError
from lit_mm.run.lock import CONFLICTS, NO_LOCKS


class Journal:
    """A file of finished batches that one process at a time may write.

    Inside a `with` block it holds the batches of earlier launches. A line that was cut by a kill is removed. On a file
    system without locks, two launches at the same time are not noticed.

    Args:
        path: path of the file.
    Attributes:
        batches: finished batches in order; each is a list of JSON objects.
    Raises:
        UserError: another process writes the journal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.batches: list[list[dict[str, Any]]] = []

    def __enter__(self) -> Journal:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (*CONFLICTS, *NO_LOCKS):
                raise
            if error.errno in CONFLICTS:
                self._file.close()
                raise UserError(
                    f"another process writes {str(self.path)!r}. Wait for it, or choose another folder with --out"
                ) from error
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._file.truncate(len(whole))
        self.batches = [json.loads(line) for line in whole.splitlines()]
        return self

    def append(self, batch: list[dict[str, Any]]) -> None:
        """Append a finished batch. It is on the disk when this returns."""
        self._file.write(json.dumps(batch, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.batches.append(batch)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()  # this releases the lock
