"""The error of one sample of a data set, and the closed list of its kinds."""

from __future__ import annotations

from typing import Literal, get_args

from lit_mm.documents.printable import printable
from lit_mm.errors import UserError

Kind = Literal[
    "malformed_json",
    "malformed_text",
    "bad_entry",
    "duplicate_id",
    "duplicate_member",
    "missing_file",
    "outside_folder",
    "unreadable_image",
    "too_many_pixels",
    "foreign_placeholder",
    "placeholder_mismatch",
    "unread_key",
    "empty_answer",
    "no_supervision",
    "box_outside",
    "unreadable_shard",
    "too_long",
    "layout_refused",
]
KINDS: tuple[str, ...] = get_args(Kind)
LONGEST_ID = 200  # characters of an id in a message


class SampleError(UserError):
    """The error of one broken sample. Other samples of the data set may be sound.

    Control characters in its texts are escaped, and base64 is cut, see `lit_mm.documents.printable`.

    Attributes:
        where: file and line (or row, or member) of the sample, such as "captions.jsonl:17".
        sample_id: the sample's own id, or `where` if it has none.
        kind: one of `KINDS`.
        reason: description of the fault.
        remedy: advice to the user.
    Args:
        message: description of the fault; as the only argument, the full message of an error in a loader's worker.
    Raises:
        AssertionError: `kind` is not in `KINDS`.
    """

    def __init__(
        self, message: str, *, where: str = "", sample_id: str = "", kind: str = "bad_entry", remedy: str = ""
    ) -> None:
        assert kind in KINDS, kind
        where, reason, remedy = printable(where), printable(message) if where else message, printable(remedy)
        prefix = f"{where}: " if where else ""
        super().__init__(f"{prefix}{reason}{f'. {remedy}' if remedy else ''}")
        self.reason, self.where, self.kind, self.remedy = reason, where, kind, remedy
        identity = printable(sample_id or where)
        self.sample_id = identity if len(identity) <= LONGEST_ID else identity[: LONGEST_ID - 3] + "..."

    def __reduce__(self) -> tuple:
        return _rebuilt, (self.reason, self.where, self.sample_id, self.kind, self.remedy)


def _rebuilt(reason: str, where: str, sample_id: str, kind: str, remedy: str) -> SampleError:
    return SampleError(reason, where=where, sample_id=sample_id, kind=kind, remedy=remedy)
