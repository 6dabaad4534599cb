"""Faults, the records of samples that are not trained on."""

from __future__ import annotations

from dataclasses import dataclass

from lit_mm.documents.decode import PictureError
from lit_mm.documents.sources.errors import SampleError
from lit_mm.errors import UserError


@dataclass(frozen=True, slots=True)
class Fault:
    """The reason why a sample is not trained on.

    Attributes:
        number: number of the sample, counted through all sources.
        sample_id: id of the sample; `where` if it has no id.
        where: file and line; "" if the source does not tell them.
        kind: kind of fault, one of `lit_mm.documents.sources.KINDS`.
        reason: explanation for the user, with a remedy.
    """

    number: int
    sample_id: str
    where: str
    kind: str
    reason: str

    @classmethod
    def of(cls, number: int, error: UserError, sample_id: str = "") -> Fault:
        """Build a fault from an error.

        Args:
            number: number of the sample, counted through all sources.
            error: error raised while the sample was made.
            sample_id: id of the sample, used if the error does not hold one.
        """
        if isinstance(error, SampleError):
            return cls(number, error.sample_id or sample_id, error.where, error.kind, str(error))
        kind = "unreadable_image" if isinstance(error, PictureError) else "bad_entry"
        return cls(number, sample_id, "", kind, str(error))
