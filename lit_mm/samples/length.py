"""The length of a sample: tokens, views and supervised tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Length:
    """The numbers of tokens, views and supervised tokens of a sample, known before its pixels are read."""

    tokens: int
    views: int
    supervised: int
