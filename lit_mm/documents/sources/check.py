"""Go through whole sources without decoding pixels, and say what is wrong: file and line, reason, remedy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from lit_mm.documents.document import Document
from lit_mm.documents.printable import printable
from lit_mm.documents.sources.errors import SampleError
from lit_mm.documents.sources.placeholders import LITERAL
from lit_mm.documents.sources.source import GAP, Source
from lit_mm.errors import UserError


class Documents(Protocol):
    """Whatever gives documents by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Document: ...


DUPLICATE = "duplicate_id"
# What is unusual in samples and trained on all the same
NOTES: Mapping[str, str] = {
    DUPLICATE: "samples have an id that an earlier one has",
    LITERAL: "samples have a placeholder that is read as text (HTML, code)",
    GAP: "pages lack a picture, whose place is left out",
}


@dataclass
class Summary:
    """What was seen of one source.

    Attributes:
        name: name of the source.
        samples, pictures: number of samples and of pictures.
        illustrated: number of samples with a picture.
        broken: number of samples with at least one error.
        kinds: number of errors by kind, see `lit_mm.documents.sources.KINDS`.
        notes: number of samples by what is unusual in them and no error, see `NOTES`.
        first_notes: place of the first sample of every note.
    """

    name: str
    samples: int = 0
    pictures: int = 0
    illustrated: int = 0
    broken: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    first_notes: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "kinds": dict(sorted(self.kinds.items())), "notes": dict(sorted(self.notes.items()))}

    def lines(self) -> list[str]:
        """The notes in words; a source without any picture is one."""
        lines = [
            f"{count} of {self.samples} {NOTES[note]}, the first at {self.first_notes[note]}"
            for note, count in sorted(self.notes.items())
        ]
        if not self.illustrated and self.samples:
            lines.append(f"0 of {self.samples} samples have a picture")
        return lines


def check_source(
    name: str,
    source: Documents,
    tell: Callable[[SampleError], None],
    progress: Callable[[int], None] = lambda samples: None,
) -> Summary:
    """Look at every sample of a source.

    Entries are parsed, headers read, placeholders, answers and regions compared with the pictures. Ids that are not
    unique are counted in a note: published mixtures have them. Of a source that only gives documents (a generated one)
    whatever it refuses is an error.

    Args:
        name: name of the source.
        source: a `Source`, or anything that gives documents by number.
        tell: called with every error, in order.
        progress: called with the number of samples that are finished.
    """
    summary = Summary(name, samples=len(source))
    ids: dict[int, int] = {}  # hash of an id -> the first sample that has it: a set of a million ids fits in memory
    for number in range(len(source)):
        notes: Counter[str] = Counter()
        identity, pictures, errors = (
            source.check(number, notes) if isinstance(source, Source) else _look(source, number)
        )
        if identity is not None:
            first = ids.setdefault(hash(identity), number)
            if first != number and _identity(source, first) == identity:
                notes[DUPLICATE] += 1
        for note in notes:
            summary.first_notes.setdefault(note, _place(source, number))
        summary.notes.update(notes)
        summary.pictures += pictures
        summary.illustrated += bool(pictures)
        summary.broken += bool(errors)
        summary.kinds.update(error.kind for error in errors)
        for error in errors:
            tell(error)
        progress(number + 1)
    return summary


def _identity(source: Documents, number: int) -> str | None:
    """The id of a sample that could be parsed."""
    return source.identity(source.sample(number)) if isinstance(source, Source) else source[number].id


def _place(source: Documents, number: int) -> str:
    return printable(source.where(number)) if isinstance(source, Source) else f"number {number}"


def _look(source: Documents, number: int) -> tuple[str | None, int, list[SampleError]]:
    """As `Source.check`, of documents alone."""
    try:
        document = source[number]
    except SampleError as error:
        return None, 0, [error]
    except UserError as error:
        return None, 0, [SampleError(str(error), sample_id=f"number {number}", kind="bad_entry")]
    return document.id, len(document.pictures), []


def as_record(name: str, error: SampleError) -> Mapping[str, str]:
    """An error for machines."""
    return {
        "source": name,
        "where": error.where,
        "id": error.sample_id,
        "kind": error.kind,
        "reason": error.reason,
        "remedy": error.remedy,
    }
