"""Lists that are stored as something else: as JSON text in a csv, as columns in a table of Hugging Face."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

BEGINNING = re.compile(r"\s*\[\s*[\[{\"\]]")  # of a list of lists, objects or texts, or of an empty list


def list_of(value: Any) -> Any:
    """Return the list that a value stands for; a value that stands for none is unchanged.

    A text may hold a JSON list. An object of lists of one length is a list of objects: {"role": ["user", "assistant"],
    "content": ["q", "a"]}, as the `datasets` package stores a sequence of objects.
    """
    if isinstance(value, Mapping):
        columns = list(value.values())
        if not columns or not all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
            return value
        return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]
    if not isinstance(value, str) or BEGINNING.match(value) is None:
        return value
    try:
        content = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return content if isinstance(content, list) else value
