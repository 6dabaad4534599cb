"""Go through whole sources without decoding pixels, and say what is wrong: file and line, reason, remedy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lit_mm.documents.document import Document
from lit_mm.documents.sources.errors import SampleError
from lit_mm.documents.sources.source import Source
from lit_mm.errors import UserError


class Documents(Protocol):
    """Whatever gives documents by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Document: ...


@dataclass
class Summary:
    """What was seen of one source.

    Attributes:
        name: of the source.
        samples, pictures: how many.
        broken: samples with at least one error.
        kinds: errors by kind, see `lit_mm.documents.sources.KINDS`.
    """

    name: str
    samples: int = 0
    pictures: int = 0
    broken: int = 0
    kinds: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "kinds": dict(sorted(self.kinds.items()))}


def check_source(
    name: str,
    source: Documents,
    tell: Callable[[SampleError], None],
    progress: Callable[[int], None] = lambda samples: None,
) -> Summary:
    """Look at every sample of a source.

    Entries are parsed, headers read, placeholders, answers and regions compared with the pictures, ids with each other.
    Of a source that only gives documents (a generated one) whatever it refuses is told.

    Args:
        name: of the source.
        source: a `Source`, or anything that gives documents by number.
        tell: called with every error, in order.
        progress: told how many samples are done.
    """
    summary = Summary(name, samples=len(source))
    look = source.check if isinstance(source, Source) else lambda number: _look(source, number)
    ids: dict[int, int] = {}  # hash of an id -> the first sample that has it: a set of a million ids fits in memory
    for number in range(len(source)):
        identity, pictures, errors = look(number)
        if identity is not None:
            first = ids.setdefault(hash(identity), number)
            if first != number and look(first)[0] == identity:
                errors = [*errors, _duplicate(source, number, first, identity)]
        summary.pictures += pictures
        summary.broken += bool(errors)
        summary.kinds.update(error.kind for error in errors)
        for error in errors:
            tell(error)
        progress(number + 1)
    return summary


def _look(source: Documents, number: int) -> tuple[str | None, int, list[SampleError]]:
    """As `Source.check`, of documents alone."""
    try:
        document = source[number]
    except SampleError as error:
        return None, 0, [error]
    except UserError as error:
        return None, 0, [SampleError(str(error), sample_id=f"number {number}", kind="bad_entry")]
    return document.id, len(document.pictures), []


def _duplicate(source: Documents, number: int, first: int, identity: str) -> SampleError:
    places: Sequence[str] = [f"number {n}" for n in (number, first)]
    if isinstance(source, Source):
        places = [source.sample(n).where for n in (number, first)]
    return SampleError(
        f"the id {identity!r} is that of {places[1]} too",
        where=places[0],
        sample_id=identity,
        kind="duplicate_id",
        remedy="Give every sample its own",
    )


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
