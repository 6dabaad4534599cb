"""Conversations about image files, in one declared format."""

from __future__ import annotations

from lit_mm.datamodules.held_out import HeldOut
from lit_mm.documents.document import Document
from lit_mm.documents.sources import FORMATS, Source, open_source, undeclared
from lit_mm.documents.sources.declared import SYNONYMS, unknown_format
from lit_mm.errors import UserError
from lit_mm.stream.datamodule import StreamDataModule, WorkerStart
from lit_mm.stream.maker import TooLong
from lit_mm.stream.screen import BadSample
from lit_mm.stream.split import Split

CONVERSATIONS = ("llava", "qwen_vl", "xcomposer", "messages", "query_response")  # formats
MOST_ASKED = 500  # rows of a held-out share that are asked; the other rows of the share are not used at all


class Conversations(StreamDataModule):
    """This data module reads conversations about images for supervised fine-tuning.

    Args:
        path: data file, local or a URL; see `lit_mm.documents.sources.Source`.
        images: folder that relative image paths start from; None for the folder of the data file.
        heldout_path: file of conversations that are never trained on, for the examination at the end; None for no file.
        format: format of both files: llava, qwen_vl, xcomposer, messages or query_response, see
            `lit_mm.documents.sources`; it is required.
        limit_group: largest number of bytes of a row group of a parquet file; None for the default.
        limit_pixels: largest number of pixels of a picture; a larger picture makes a bad sample. None for the default.
        literal_placeholders: True treats placeholders in rows without pictures as text, such as HTML or code.
        heldout_share: share of the rows of `path` that is held out if `heldout_path` is None, see
            `lit_mm.stream.split.Split`. The first 500 of these rows are asked at the end. 0 holds out no row.
        places: folders and URLs that rows may name outside of `images`, such as `/data/coco, https`; None for none.
            See `lit_mm.documents.sources.Source`.
        global_batch, micro_batch, row_tokens, row_views, window, num_workers, worker_start, too_long, on_bad_sample,
            max_bad, max_unsupervised: see `StreamDataModule`.
    Raises:
        UserError: `format` is missing or not one of conversations, or `heldout_share` is not a share.
    """

    def __init__(
        self,
        path: str,
        images: str | None = None,
        heldout_path: str | None = None,
        format: str | None = None,
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
        limit_group: int | None = None,
        limit_pixels: int | None = None,
        literal_placeholders: bool = False,
        heldout_share: float = 0.0,
        places: str | None = None,
    ) -> None:
        super().__init__(
            global_batch,
            micro_batch,
            row_tokens,
            row_views,
            window,
            num_workers,
            too_long=too_long,
            on_bad_sample=on_bad_sample,
            max_bad=max_bad,
            max_unsupervised=max_unsupervised,
            worker_start=worker_start,
        )
        if not 0 <= heldout_share < 1:
            raise UserError(f"`data.init_args.heldout_share` is a share from 0 to below 1, got {heldout_share}")
        if format is None:
            raise undeclared(path, CONVERSATIONS)
        if format not in CONVERSATIONS:
            raise _no_conversations(format)
        self.path, self.images, self.heldout_path, self.format = path, images, heldout_path, format
        options = {
            "images": images,
            "limit_pixels": limit_pixels,
            "literal_placeholders": literal_placeholders or None,
            "limit_group": limit_group,
            "places": places,
        }
        self.options = {key: option for key, option in options.items() if option is not None}
        self.heldout_share = heldout_share if heldout_path is None else 0.0
        self._held_out: HeldOut | None = None

    def source(self) -> Source | Split:
        source = self._open(self.path)
        return Split(source, self.heldout_share, is_held_out=False) if self.heldout_share else source

    @property
    def heldout_source(self) -> Source | Split | None:
        """Held-out conversations by number; None without any."""
        if self.heldout_share:
            return Split(self._open(self.path), self.heldout_share, is_held_out=True, limit=MOST_ASKED)
        return None if self.heldout_path is None else self._open(self.heldout_path)

    def heldout(self, count: int | None = None) -> list[Document]:
        """See `HeldOut`."""
        if self._held_out is None:
            source = self.heldout_source
            if source is None:
                return []
            self._held_out = HeldOut(source, self.on_bad_sample)
        return self._held_out.documents(count)

    def _open(self, path: str) -> Source:
        return open_source({"format": self.format, "path": path, **self.options})


def _no_conversations(name: str) -> UserError:
    """Return the error of a format that `Conversations` does not read."""
    format = SYNONYMS.get(name.lower().replace("-", "_"), name)
    if format not in FORMATS or format in CONVERSATIONS:
        return unknown_format(name, CONVERSATIONS)
    return UserError(
        f"{format!r} is no format of conversations, which are {', '.join(CONVERSATIONS)}. Declare a corpus: "
        f"--data Corpora --data.corpora '[{{name: mine, format: {format}, path: ...}}]'"
    )
