"""The index of lengths caches tokens and views of every sample of a source under one layout.

Without an index, every rank lays out each sample when its window is planned, and a stage whose length is given in
epochs lays out all samples before its first step. The name of an index is a hash of the data files and of the layouts
of a set of probes. A sample whose length differs from the index stops the run (see `lit_mm.stream.rows.Rows`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lit_mm.documents.document import Document, Turn
from lit_mm.documents.sources import SampleError, cache
from lit_mm.errors import UserError
from lit_mm.samples.processor import Processor, Sample
from lit_mm.stream.maker import SampleMaker
from lit_mm.stream.screen import CUT, UNKNOWN, WHOLE

CHUNK = 4096  # number of samples written to the cache at a time
PROBES = (
    "What is shown in the image?\nAnswer with a single word.",
    " The quick brown fox, 3.14 x 10^-7; <b>naïve</b> Ünïcödé 码字 \t\U0001f600\n\n- one\n- two",
    "yes",
    "2019",  # in many vocabularies a separate piece precedes the first digit
)
SIDES = (1, 27, 100, 224, 337, 480, 640, 1000, 1333, 2048, 4000)  # sides of the probe images, pixels


@runtime_checkable
class Stored(Protocol):
    """A source of documents in files, whose content is part of an index's name."""

    @property
    def content(self) -> tuple[Any, ...]:
        """Values that determine the documents; see `Source.content`."""
        ...


class Sized:
    """A picture without pixels, which only has a size."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width


def fingerprint(processor: Processor, source: str = "") -> str:
    """Hash the layouts that a processor gives to the probes: texts, roles, and pictures of many sizes.

    Args:
        processor: processor to identify.
        source: name of the source of the documents, which may have its own tiling.
    """
    results: list[object] = [processor.max_length, *(processor.tokenizer.encode(text) for text in PROBES)]
    if processor.token_grid is not None:
        for height in SIDES:
            for width in SIDES:
                results.append(_of(lambda size: processor.visual_tokens(*size, source), (height, width)))
    pictures = [] if processor.token_grid is None else [Sized(337, 640)]
    chat = (
        Turn("user", (*pictures, PROBES[0])),
        Turn("assistant", (PROBES[2],)),
        Turn("user", (PROBES[1],)),
        Turn("assistant", (PROBES[3],)),
    )
    # A chat template may refuse several answers, or a system turn
    for turns in (chat, chat[:2], (Turn("system", (PROBES[0],)), *chat), (Turn("page", (*pictures, PROBES[1])),)):
        sample = _of(processor.lay_out, Document("probe", turns, source=source))
        laid_out = isinstance(sample, Sample)
        results += [sample.input_ids.tolist(), sample.labels.tolist(), sample.index.tolist()] if laid_out else [sample]
    return cache.key_of("layout", results)


def _of(lay_out: Callable[[Any], Any], probe: Any) -> Any:
    """Lay out a probe, or return the type of the error: a prompt may refuse pages, a tiling narrow images.

    The error only becomes part of the index's name. Documents of the data that are refused are reported when they are
    planned.
    """
    try:
        return lay_out(probe)
    except Exception as error:
        return type(error).__name__


def keys_of(maker: SampleMaker) -> list[str | None]:
    """Compute the name of the index of every source; None for a source without files."""
    sources = maker.documents.sources
    if not any(isinstance(source, Stored) for source in sources):
        return [None] * len(sources)
    layouts = {"": fingerprint(maker.processor)}  # "" stands for sources without their own tiling
    budgets = maker.too_long, maker.row_tokens, maker.row_views
    keys: list[str | None] = []
    for source, name in zip(sources, maker.documents.names, strict=True):
        tiled = name if name in maker.processor.by_source else ""
        if tiled not in layouts:
            layouts[tiled] = fingerprint(maker.processor, tiled)
        is_stored = isinstance(source, Stored)
        keys.append(cache.key_of("lengths", source.content, layouts[tiled], budgets) if is_stored else None)
    return keys


def load(maker: SampleMaker) -> list[np.ndarray | None]:
    """Load by source [N, 4] tokens, views, supervised tokens and state of every sample; None without an index."""
    tables = [cache.load(key) if key is not None else None for key in keys_of(maker)]
    return [None if arrays is None else arrays["lengths"] for arrays in tables]


def build(maker: SampleMaker, source: int, progress: Callable[[int], None] = lambda samples: None) -> int:
    """Lay out every sample of a source once, without its pixels, and cache the lengths. A second call resumes a first.

    A sample that cannot be trained on is stored as unknown; it is laid out again, and reported, when it is planned.

    Args:
        maker: object that makes the samples.
        source: number of a source with files in the maker's documents.
        progress: function called with the number of finished samples.
    Returns:
        Number of unknown samples.
    """
    documents = maker.documents
    key, size = keys_of(maker)[source], documents.sizes[source]

    def make(chunk: int) -> np.ndarray:
        rows = []
        for number in range(chunk * CHUNK, min((chunk + 1) * CHUNK, size)):
            try:
                sample, cut = maker(documents.starts[source] + number)
                length = sample.length
                rows.append((length.tokens, length.views, length.supervised, CUT if cut else WHOLE))
            except UserError:
                rows.append((0, 0, 0, UNKNOWN))
            progress(number + 1)
        return np.array(rows, dtype=np.int32)

    arrays = cache.load(key)
    if arrays is None:
        arrays = cache.finish(key, {"lengths": np.concatenate(cache.resume(key, -(-size // CHUNK), make))})
    progress(size)
    return int((arrays["lengths"][:, 3] == UNKNOWN).sum())


def explain(maker: SampleMaker, source: int, limit: int) -> list[SampleError]:
    """Return the errors of the first samples that the index of a source marks as unknown.

    Args:
        maker: object that makes the samples.
        source: number of the source in the maker's documents; its index must exist.
        limit: maximum number of errors.
    """
    errors: list[SampleError] = []
    for number in np.flatnonzero(load(maker)[source][:, 3] == UNKNOWN):
        if len(errors) == limit:
            break
        try:
            maker(maker.documents.starts[source] + int(number))
        except SampleError as error:
            errors.append(error)
    return errors


def forget(maker: SampleMaker, source: int) -> None:
    """Remove the index of a source."""
    cache.forget(keys_of(maker)[source])
