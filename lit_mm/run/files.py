"""Files that survive a kill of the process."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a file in one step: after a kill it has the old content or the new one, but never a part of it.

    Args:
        path: path of the file, in a folder that exists.
        content: bytes, or text that is written as UTF-8.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(part, path)
