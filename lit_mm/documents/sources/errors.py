"""What can be wrong with one sample of a data set: a closed list of kinds, and the error that tells one."""

from __future__ import annotations

from typing import Literal, get_args

from lit_mm.errors import UserError

Kind = Literal[
    "malformed_json",
    "bad_entry",
    "missing_id",
    "duplicate_id",
    "missing_file",
    "unreadable_image",
    "too_many_pixels",
    "placeholder_mismatch",
    "empty_answer",
    "no_supervision",
    "box_outside",
    "unreadable_shard",
    "too_long",
    "layout_refused",
]
KINDS: tuple[str, ...] = get_args(Kind)


class SampleError(UserError):
    """One sample is broken; the rest of the data set may be sound.

    Attributes:
        where: file and line (or row, or member) of the sample, "captions.jsonl:17".
        sample_id: the sample's own id, or `where` when it has none.
        kind: one of `KINDS`.
        reason: what is wrong, in words.
        remedy: what to do about it.
    Args:
        message: what is wrong. Given alone, it is a message made earlier, as a loader's worker hands it over.
    Raises:
        AssertionError: `kind` is not in `KINDS`.
    """

    def __init__(
        self, message: str, *, where: str = "", sample_id: str = "", kind: str = "bad_entry", remedy: str = ""
    ) -> None:
        assert kind in KINDS, kind
        prefix = f"{where}: " if where else ""
        super().__init__(f"{prefix}{message}{f'. {remedy}' if remedy else ''}")
        self.reason, self.where, self.kind, self.remedy = message, where, kind, remedy
        self.sample_id = sample_id or where

    def __reduce__(self) -> tuple:
        return _rebuilt, (self.reason, self.where, self.sample_id, self.kind, self.remedy)


def _rebuilt(reason: str, where: str, sample_id: str, kind: str, remedy: str) -> SampleError:
    return SampleError(reason, where=where, sample_id=sample_id, kind=kind, remedy=remedy)
