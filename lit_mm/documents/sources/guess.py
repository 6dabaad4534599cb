"""What format a data file looks like: a help for who has not declared one, never a decision."""

from __future__ import annotations

import os

from lit_mm.documents.sources.entries import open_entries
from lit_mm.documents.sources.forms import format_of
from lit_mm.documents.sources.paths import expand, is_url, name_of
from lit_mm.errors import UserError


def guess_format(pattern: str) -> str | None:
    """The format that the first file of a pattern looks like, by its first entry; None where nothing shows it."""
    try:
        path = expand(pattern)[0]
        if not is_url(path) and os.path.isdir(path):
            return "folder"
        if name_of(path).endswith(".tar"):
            return "captions"
        return format_of(open_entries(path, "entry").entry(0))
    except (UserError, OSError):
        return None
