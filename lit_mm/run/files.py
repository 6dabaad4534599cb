"""Files that survive a kill of the process."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | Path, *, synced: bool = False) -> Iterator[Path]:
    """Yield the path of a temporary file, which replaces `path` in one step at the end of the `with` block.

    After a kill `path` has the old content or the new one, but never a part of it. An exception inside the block leaves
    the old content. Several processes may write a file at the same time; the last one's content stays.

    Args:
        path: path of the file, in a folder that exists.
        synced: True waits until the content is on the disk, so that a failure of the power cannot leave an empty file.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        yield part
        if synced:
            with part.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: str | Path, content: str | bytes, *, synced: bool = False) -> None:
    """Write a file in one step, see `whole_file`.

    Args:
        path: path of the file, in a folder that exists.
        content: bytes, or text that is written as UTF-8.
        synced: True waits until the content is on the disk.
    """
    with whole_file(path, synced=synced) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
