"""Check whole sources without decoding pixels. Each error has its file and line, a reason and a remedy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Protocol

from lit_mm.documents.document import Document
from lit_mm.documents.printable import printable
from lit_mm.documents.sources.errors import SampleError
from lit_mm.documents.sources.placeholders import LITERAL
from lit_mm.documents.sources.source import GAP, OVERLAP, UNNAMED, Source, content_hash
from lit_mm.errors import UserError


class Documents(Protocol):
    """A collection that returns documents by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Document: ...


DUPLICATE = "duplicate_id"
# Name of a note -> its text. Samples with notes are trained on.
NOTES: Mapping[str, str] = {
    DUPLICATE: "samples have an id that an earlier one has",
    LITERAL: "samples have a placeholder that is read as text (HTML, code)",
    GAP: "pages lack a picture, whose place is left out",
    OVERLAP: "samples are held out as well, so the examination asks what was trained on",
    UNNAMED: "samples have no `id`; their file and line take its place",
}


@dataclass
class Summary:
    """Counts of the samples of one source.

    Attributes:
        name: name of the source.
        samples, pictures: number of samples and of pictures.
        illustrated: number of samples with a picture.
        broken: number of samples with at least one error.
        kinds: number of errors by kind, see `lit_mm.documents.sources.KINDS`.
        notes: number of samples by note, see `NOTES`.
        first_notes: place of the first sample with each note.
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
        """Return the notes as sentences. A source without any picture gets a note as well."""
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
    held_out: Set[int] = frozenset(),
) -> Summary:
    """Check every sample of a source.

    The check parses entries, reads headers, and compares placeholders, answers and regions with the pictures. Repeated
    ids are a note, because published mixtures have them. A source that only returns documents, such as a generated one,
    is checked by the errors that it raises.

    Args:
        name: name of the source.
        source: a `Source`, or a collection that returns documents by number.
        tell: function that is called with every error, in order.
        progress: function that is called with the number of finished samples.
        held_out: `content_hash` of the held-out documents.
    """
    summary = Summary(name, samples=len(source))
    ids: dict[int, int] = {}  # hash of an id -> first sample with that id; a million hashes fit in memory
    for number in range(len(source)):
        notes: Counter[str] = Counter()
        identity, pictures, errors = (
            source.check(number, notes, held_out) if isinstance(source, Source) else _look(source, number)
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


def content_hashes(source: Documents) -> set[int]:
    """Return `content_hash` of the sound documents of a source of files; an empty set for other collections.

    The held-out rows of a file that is divided are such a collection; they are not among the others by construction.
    """
    hashes: set[int] = set()
    if isinstance(source, Source):
        for number in range(len(source)):
            try:
                hashes.add(content_hash(source[number]))
            except SampleError:
                continue  # the check of this source lists it
    return hashes


def _identity(source: Documents, number: int) -> str | None:
    """Return the id of a sample that can be parsed; None if it has no id."""
    return source.identity(source.sample(number)) if isinstance(source, Source) else source[number].id


def _place(source: Documents, number: int) -> str:
    return printable(source.where(number)) if isinstance(source, Source) else f"number {number}"


def _look(source: Documents, number: int) -> tuple[str | None, int, list[SampleError]]:
    """Return the same as `Source.check` for a collection that only returns documents."""
    try:
        document = source[number]
    except SampleError as error:
        return None, 0, [error]
    except UserError as error:
        return None, 0, [SampleError(str(error), sample_id=f"number {number}", kind="bad_entry")]
    return document.id, len(document.pictures), []


def as_record(name: str, error: SampleError) -> Mapping[str, str]:
    """Return an error as a JSON object."""
    return {
        "source": name,
        "where": error.where,
        "id": error.sample_id,
        "kind": error.kind,
        "reason": error.reason,
        "remedy": error.remedy,
    }
