"""The data module of the published recipes: several declared data sets, which may differ from stage to stage."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from lit_mm.datamodules.held_out import HeldOut
from lit_mm.datamodules.mixture import Member, Mixture
from lit_mm.documents.document import Document
from lit_mm.documents.sources import open_source
from lit_mm.errors import UserError
from lit_mm.stream.datamodule import Source, StreamDataModule, WorkerStart
from lit_mm.stream.maker import TooLong
from lit_mm.stream.mixture import Joined
from lit_mm.stream.screen import BadSample


@dataclass
class Corpus:
    """One data set. Its files are first read when a stage that trains on it begins.

    Args:
        name: name in logs and in the ledger, unique among the corpora of a stage.
        format: format of the data set, see `lit_mm.documents.sources.FORMATS`; it is required.
        path: path of the file or the shards.
        images: folder that relative picture names start from; None for the folder of the data file.
        max_images: largest number of pictures of a page of format mmc4, the first ones; None for no limit.
        weight, repeat: share of the draws, or number of passes in an epoch, see `lit_mm.datamodules.mixture.Member`.
        limit_pixels, limit_group, text, caption, image_first, file, gaps, literal_placeholders, places: arguments of
            the format's class, see `lit_mm.documents.sources`; None for the default. An argument that the format does
            not have is refused.
    """

    name: str
    format: str | None = None
    path: str | None = None
    images: str | None = None
    max_images: int | None = None
    weight: float | None = None
    repeat: float | None = None
    limit_pixels: int | None = None
    limit_group: int | None = None
    text: str | None = None
    caption: str | None = None
    image_first: bool | None = None
    file: str | None = None
    gaps: str | None = None
    literal_placeholders: bool | None = None
    places: str | None = None

    def open(self) -> Source:
        """Open the source.

        Raises:
            UserError: see `open_source`.
        """
        drawing = ("weight", "repeat")
        return open_source({k: v for k, v in asdict(self).items() if v is not None and k not in drawing})


class Corpora(StreamDataModule):
    """A `Mixture` whose sources are opened when a stage begins, so that a recipe may name data that is elsewhere.

    Args:
        corpora: the data sets of the stage.
        weights: rule for the samples of a data set in an epoch, see `lit_mm.datamodules.mixture.Mixture`.
        heldout: documents that are never trained on, for the examination at the end; None for no examination.
        global_batch, micro_batch, row_tokens, row_views, window, num_workers, worker_start, too_long, on_bad_sample,
            max_bad, max_unsupervised: see `StreamDataModule`.
    Raises:
        UserError: `corpora` is empty.
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
        self._held_out: HeldOut | None = None

    def source(self) -> Joined:
        members = [Member(corpus.open(), corpus.name, corpus.weight, corpus.repeat) for corpus in self.corpora]
        return Mixture(members, self.weights).source()

    @property
    def heldout_source(self) -> Source | None:
        """Held-out documents by number; None without any."""
        return None if self.examined is None else self.examined.open()

    def heldout(self, count: int | None = None) -> list[Document]:
        """See `HeldOut`."""
        if self._held_out is None:
            source = self.heldout_source
            if source is None:
                return []
            self._held_out = HeldOut(source, self.on_bad_sample)
        return self._held_out.documents(count)
