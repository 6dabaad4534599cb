"""What format a data file looks like: a help for who has not declared one, never a decision."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from lit_mm.documents.sources.entries import open_entries
from lit_mm.documents.sources.paths import expand, is_url, name_of
from lit_mm.documents.turns import PLACEHOLDER
from lit_mm.errors import UserError

# Format -> keys of its entries
FORMS = {
    "messages": {"messages"},
    "query_response": {"query", "response"},
    "obelics": {"texts", "images"},
    "mmc4": {"text_list", "image_info"},
}


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


def format_of(entry: Any) -> str | None:
    """The format that an entry looks like; None where nothing shows it."""
    if not isinstance(entry, Mapping):
        return None
    if isinstance(turns := entry.get("conversations"), list):
        text = str(turns)
        return "qwen_vl" if "<img>" in text else "xcomposer" if PLACEHOLDER in text else "llava"
    for format_name, keys in FORMS.items():
        if keys <= entry.keys():
            return format_name
    return None
