"""A guess at the format of a data file. It only serves the error about a missing format."""

from __future__ import annotations

import os

from lit_mm.documents.sources.entries import open_entries
from lit_mm.documents.sources.forms import format_of
from lit_mm.documents.sources.paths import expand, is_url, name_of
from lit_mm.errors import UserError


def guess_format(pattern: str) -> str | None:
    """Guess a format from the first entry of the first file of a pattern; None if the entry fits no format."""
    try:
        path = expand(pattern)[0]
        if not is_url(path) and os.path.isdir(path):
            return "captions" if any(name.endswith(".tar") for name in os.listdir(path)) else "folder"
        if name_of(path).endswith(".tar"):
            return "captions"
        return format_of(open_entries(path, "entry").entry(0))
    except (UserError, OSError):
        return None
