"""Several data sets by declaration, each stage its own: what the published recipes name their data with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from datamodules.mixture import Member, Mixture
from lit_mm.documents.document import Document
from lit_mm.documents.sources import open_source
from lit_mm.errors import UserError
from lit_mm.stream.datamodule import Source, StreamDataModule, WorkerStart
from lit_mm.stream.maker import TooLong
from lit_mm.stream.mixture import Joined
from lit_mm.stream.screen import BadSample


@dataclass
class Corpus:
    """One data set; nothing of it is read before the stage that trains on it begins.

    Args:
        name: in logs and in the ledger; no two of a stage have the same.
        format: see `lit_mm.documents.sources.FORMATS`.
        path: of its file or shards.
        images: folder that relative picture names start from; the data file's own when left out.
        max_images: of a page of format mmc4, the first so many; all when left out.
        weight, repeat: how often it is drawn, see `datamodules.mixture.Member`.
    """

    name: str
    format: str
    path: str
    images: str | None = None
    max_images: int | None = None
    weight: float | None = None
    repeat: float | None = None

    def open(self) -> Source:
        """Raises:
        UserError: see `open_source`.
        """
        declaration = {"format": self.format, "path": self.path, "images": self.images, "max_images": self.max_images}
        return open_source(
            {"name": self.name} | {key: value for key, value in declaration.items() if value is not None}
        )


class Corpora(StreamDataModule):
    """A `Mixture` whose sources are opened when a stage begins, so that a recipe may name data that is elsewhere.

    Args:
        corpora: the data sets of the stage.
        weights: how often each is drawn, see `datamodules.mixture.Mixture`.
        heldout: documents that are never trained on, asked at the end; none when left out.
        global_batch, micro_batch, row_tokens, row_views, window, num_workers, worker_start, too_long, on_bad_sample,
            max_bad, max_unsupervised: see `StreamDataModule`.
    """

    def __init__(
        self,
        corpora: list[Corpus],
        weights: Literal["size", "sqrt", "explicit", "repeat"] = "size",
        heldout: Corpus | None = None,
        global_batch: int = 64,
        micro_batch: int | None = None,
        row_tokens: int | None = None,
        row_views: int | None = None,
        window: int = 1024,
        num_workers: int = 4,
        too_long: TooLong = "refuse",
        on_bad_sample: BadSample = "fail",
        max_bad: float = 0.01,
        max_unsupervised: float = 0.05,
        worker_start: WorkerStart | None = None,
    ) -> None:
        super().__init__(
            global_batch,
            micro_batch,
            row_tokens,
            row_views,
            window,
            num_workers,
            too_long,
            on_bad_sample,
            max_bad,
            max_unsupervised,
            worker_start=worker_start,
        )
        if not corpora:
            raise UserError("`data.init_args.corpora` is empty: name at least one data set")
        self.corpora, self.weights, self.examined = corpora, weights, heldout

    def source(self) -> Joined:
        members = [Member(corpus.open(), corpus.name, corpus.weight, corpus.repeat) for corpus in self.corpora]
        return Mixture(members, self.weights).source()

    @property
    def heldout_source(self) -> Source | None:
        """The documents that are never trained on, by number."""
        return None if self.examined is None else self.examined.open()

    def heldout(self, count: int | None = None) -> list[Document]:
        source = self.heldout_source
        if source is None:
            return []
        return [source[i] for i in range(len(source) if count is None else min(count, len(source)))]
