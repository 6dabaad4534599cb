"""Recognition of the format of an entry by its keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_mm.documents.turns import PLACEHOLDER

# Format -> keys of its entries
FORMS = {
    "messages": {"messages"},
    "query_response": {"query", "response"},
    "obelics": {"texts", "images"},
    "mmc4": {"text_list", "image_info"},
}


def format_of(entry: Any) -> str | None:
    """Return the format that an entry looks like; None if its keys fit no format."""
    if not isinstance(entry, Mapping):
        return None
    if isinstance(turns := entry.get("conversations"), list):
        text = str(turns)
        return "qwen_vl" if "<img>" in text else "xcomposer" if PLACEHOLDER in text else "llava"
    for format_name, keys in FORMS.items():
        if keys <= entry.keys():
            return format_name
    return None
