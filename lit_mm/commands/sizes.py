"""Image sizes on the command line, WIDTHxHEIGHT. No torch is imported."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from lit_mm.errors import UserError

TYPED = re.compile(r"([1-9]\d*)[xX]([1-9]\d*)")


def read_sizes(text: str, option: str = "--images") -> list[tuple[int, int]]:
    """ "336x336,1008x672", or "@FILE" of a JSON list of [width, height] -> [(width, height)], pixels.

    Raises:
        UserError: a size or the file does not have this form.
    """
    if not text.startswith("@"):
        return [_read_size(size, option) for size in text.split(",")]
    path = text[1:]
    try:
        listed = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is no JSON: {error}"
        raise UserError(f"{option}: {path!r} cannot be read ({reason})") from error
    if not isinstance(listed, list) or not all(map(_is_size, listed)):
        wrong = listed if not isinstance(listed, list) else next(item for item in listed if not _is_size(item))
        raise UserError(f"{option}: {path!r} must be a JSON list of [width, height] in pixels, got {str(wrong)[:80]}")
    return [(width, height) for width, height in listed]


def _read_size(text: str, option: str) -> tuple[int, int]:
    """ "1008x672" -> (width, height), pixels.

    Args:
        option: name of the option, for the error.
    Raises:
        UserError: the text is not of this form.
    """
    match = TYPED.fullmatch(text.strip())
    if match is None:
        raise UserError(f"{option} takes sizes as WIDTHxHEIGHT in pixels, such as 1008x672; got {text!r}")
    return int(match[1]), int(match[2])


def _is_size(item: Any) -> bool:
    return isinstance(item, list) and len(item) == 2 and all(type(side) is int and side > 0 for side in item)
