"""Recognition of the format of an entry by its keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_mm.documents.turns import PLACEHOLDER

# (format, keys of its entries)
FORMS = (
    ("messages", {"messages"}),
    ("query_response", {"query", "response"}),
    ("query_response", {"instruction", "output"}),
    ("query_response", {"prompt", "response"}),
    ("query_response", {"question", "answer"}),
    ("obelics", {"texts", "images"}),
    ("mmc4", {"text_list", "image_info"}),
)
LISTED = ({"image", "images", "file_name"}, {"caption", "text"})  # an entry of `folder` has a key of each set


def format_of(entry: Any) -> str | None:
    """Return the format that an entry looks like; None if its keys fit no format."""
    if not isinstance(entry, Mapping):
        return None
    if isinstance(turns := entry.get("conversations"), list):
        if any(isinstance(turn, Mapping) and isinstance(turn.get("content"), list) for turn in turns):
            return "messages"
        text = str(turns)
        return "qwen_vl" if "<img>" in text else "xcomposer" if PLACEHOLDER in text else "llava"
    filled = {key for key, value in entry.items() if value is not None}  # a table has all columns in every row
    if {"prompt", "completion"} <= filled:
        return "messages" if isinstance(entry["prompt"], list) else "query_response"
    if isinstance(texts := entry.get("texts"), list) and any(isinstance(text, Mapping) for text in texts):
        return "messages"
    for format_name, keys in FORMS:
        if keys <= filled:
            return format_name
    return "folder" if all(keys & filled for keys in LISTED) else None
