"""Content of samples in messages: short, on one line, without characters that a terminal would obey."""

from __future__ import annotations

import re
from reprlib import Repr
from typing import Any

RUN = re.compile(r"(?:[A-Za-z0-9+/=_-]{60,}\s?){3,}")  # base64, in one line or in many; no word is so long


def printable(text: str) -> str:
    """Escape control characters and lone surrogates, and replace long runs without a space by their length.

    Line ends, terminal escapes, marks that reverse the direction of writing and lone surrogates become escapes such as
    `\\n` or `\\ud83d`. A run of 180 or more letters and digits, such as base64, becomes its length.
    """
    return visible(_without_runs(text), keep="")


def visible(text: str, keep: str = "\n\t\u200c\u200d") -> str:
    """Escape the characters of a text that a terminal would obey, except those in `keep`, and lone surrogates."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() or sign in keep else _escape(sign) for sign in text)


def _without_runs(text: str) -> str:
    return RUN.sub(lambda run: f"<{len(run[0])} characters>", text)


def _escape(sign: str) -> str:
    return sign if sign in ("\u3000", "\xa0") else sign.encode("unicode_escape").decode("ascii")


class _Brief(Repr):
    """`repr` of any value, with limits on nesting, list length and text length."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxlist, self.maxstring, self.maxother, self.maxlong = 3, 6, 4, 60, 60, 40

    def repr_str(self, text: str, level: int) -> str:
        text = _without_runs(text)
        return repr(text if len(text) <= self.maxstring else text[: self.maxstring - 3] + "...")

    def repr_bytes(self, content: bytes, level: int) -> str:
        return f"<{len(content)} bytes>"


_BRIEF = _Brief()


def brief(value: Any, limit: int = 80) -> str:
    """Return the `repr` of a value in at most `limit` characters; bytes appear as their count."""
    text = printable(_BRIEF.repr(value))
    return text if len(text) <= limit else text[: limit - 3] + "..."
