"""The index of lengths: tokens and views of every sample of a source under one layout, computed once and cached.

Without it each sample is laid out when its window is planned, on every rank, and a stage whose length is given in
epochs lays out all of them before its first step. The index is named by the content of the data files and by what the
layout does to a set of probes; a sample that turns out otherwise stops the run (see `lit_mm.stream.rows.Rows`).
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

CHUNK = 4096  # samples that are written to the cache at a time
PROBES = (
    "What is shown in the image?\nAnswer with a single word.",
    " The quick brown fox, 3.14 x 10^-7; <b>naïve</b> Ünïcödé 码字 \t\U0001f600\n\n- one\n- two",
    "yes",
    "2019",  # begins with a piece of its own in many vocabularies
)
SIDES = (1, 27, 100, 224, 337, 480, 640, 1000, 1333, 2048, 4000)  # pixels, of probed images


@runtime_checkable
class Stored(Protocol):
    """Documents in files, whose content names an index."""

    @property
    def content(self) -> tuple[Any, ...]:
        """What decides the documents, see `Source.content`."""
        ...


class Sized:
    """A picture that has a size and nothing else."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width


def fingerprint(processor: Processor, source: str = "") -> str:
    """A hash of what a processor does to the probes: texts, roles, and pictures of many sizes.

    Args:
        source: name of the source of the documents, which may have a tiling of its own.
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
    for turns in (chat, (Turn("system", (PROBES[0],)), *chat), (Turn("page", (*pictures, PROBES[1])),)):
        sample = _of(processor.lay_out, Document("probe", turns, source=source))
        laid_out = isinstance(sample, Sample)
        results += [sample.input_ids.tolist(), sample.labels.tolist(), sample.index.tolist()] if laid_out else [sample]
    return cache.key_of("layout", results)


def _of(lay_out: Callable[[Any], Any], probe: Any) -> Any:
    """What a layout makes of a probe, or how it refuses it: a prompt may know no pages, a tiling no narrow images.

    An error only goes into the name of the index here. A document of the data that is refused is reported elsewhere.
    """
    try:
        return lay_out(probe)
    except Exception as error:
        return type(error).__name__


def keys_of(maker: SampleMaker) -> list[str | None]:
    """The names of the indexes of a maker's sources; None of a source that has no files."""
    sources = maker.documents.sources
    if not any(isinstance(source, Stored) for source in sources):
        return [None] * len(sources)
    layouts = {"": fingerprint(maker.processor)}  # of sources without a tiling of their own
    budgets = maker.too_long, maker.row_tokens, maker.row_views
    keys: list[str | None] = []
    for source, name in zip(sources, maker.documents.names, strict=True):
        tiled = name if name in maker.processor.by_source else ""
        if tiled not in layouts:
            layouts[tiled] = fingerprint(maker.processor, tiled)
        named = cache.key_of("lengths", source.content, layouts[tiled], budgets) if isinstance(source, Stored) else None
        keys.append(named)
    return keys


def load(maker: SampleMaker) -> list[np.ndarray | None]:
    """By source: [N, 4] tokens, views, supervised tokens and state of every sample, None where there is no index."""
    tables = [cache.load(key) if key is not None else None for key in keys_of(maker)]
    return [None if arrays is None else arrays["lengths"] for arrays in tables]


def build(maker: SampleMaker, source: int, progress: Callable[[int], None] = lambda samples: None) -> int:
    """Lay out every sample of a source once, without its pixels, and keep the lengths. Interrupted, it goes on later.

    A sample that cannot be trained on is stored as unknown: it is laid out again, and reported, when it is planned.

    Args:
        source: its number in the maker's documents; one that has files.
        progress: called with the number of samples that are finished.
    Returns:
        How many samples are unknown.
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
    """Why the first samples cannot be trained on that the index of a source has as unknown.

    Args:
        source: number of the source in the maker's documents; its index has been built.
        limit: largest number of errors.
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
