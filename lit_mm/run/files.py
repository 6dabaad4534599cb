"""Files that survive a kill of the process."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a file in one step: after a kill it has the old content or the new one, but never a part of it.

    Several processes may write a file at the same time; the last one's content stays.

    Args:
        path: path of the file, in a folder that exists.
        content: bytes, or text that is written as UTF-8.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
