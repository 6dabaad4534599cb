"""Why a sample was not trained on."""

from __future__ import annotations

from dataclasses import dataclass

from lit_mm.documents.decode import PictureError
from lit_mm.documents.sources.errors import SampleError
from lit_mm.errors import UserError


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a sample was not trained on.

    Attributes:
        number: of the sample, through all sources.
        sample_id: its own id; `where` for one that has none.
        where: file and line, "" where the source does not say.
        kind: one of `lit_mm.documents.sources.KINDS`.
        reason: in words, with what to do about it.
    """

    number: int
    sample_id: str
    where: str
    kind: str
    reason: str

    @classmethod
    def of(cls, number: int, error: UserError, sample_id: str = "") -> Fault:
        """The fault that an error tells.

        Args:
            sample_id: where the error does not know it.
        """
        if isinstance(error, SampleError):
            return cls(number, error.sample_id or sample_id, error.where, error.kind, str(error))
        kind = "unreadable_image" if isinstance(error, PictureError) else "bad_entry"
        return cls(number, sample_id, "", kind, str(error))
