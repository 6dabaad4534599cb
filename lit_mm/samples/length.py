"""What a sample takes: tokens, views, supervised tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Length:
    """What a sample will cost, known before its pixels are read."""

    tokens: int
    views: int
    supervised: int
