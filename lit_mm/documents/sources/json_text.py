"""Lists that are stored as JSON text, as a csv has to."""

from __future__ import annotations

import json
import re
from typing import Any

BEGINNING = re.compile(r"\s*\[\s*[\[{\"\]]")  # of a list of lists, objects or texts, or of an empty list


def list_of(value: Any) -> Any:
    """Return the list that a text holds as JSON. Every other value is unchanged."""
    if not isinstance(value, str) or BEGINNING.match(value) is None:
        return value
    try:
        content = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return content if isinstance(content, list) else value
