"""Conversations about image files, in the formats that XComposer, LLaVA and Qwen-VL are trained on."""

from __future__ import annotations

from typing import Literal

from lit_mm.documents.document import Document
from lit_mm.documents.sources import FORMATS, Source
from lit_mm.stream.datamodule import StreamDataModule, WorkerStart
from lit_mm.stream.maker import TooLong
from lit_mm.stream.screen import BadSample


class Conversations(StreamDataModule):
    """Supervised fine-tuning on conversations about images.

    Args:
        path: the .json or .jsonl file, local or a URL; see `lit_mm.documents.sources.Source`.
        images: folder that relative image paths start from; the file's own when left out.
        heldout_path: conversations that are never trained on, asked at the end; none when left out.
        format: of all three, see `lit_mm.documents.sources.conversations`.
        global_batch, micro_batch, row_tokens, row_views, window, num_workers, worker_start, too_long, on_bad_sample,
            max_bad, max_unsupervised: see `StreamDataModule`.
    """

    def __init__(
        self,
        path: str,
        images: str | None = None,
        heldout_path: str | None = None,
        format: Literal["xcomposer", "llava", "qwen_vl"] = "xcomposer",
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
            too_long=too_long,
            on_bad_sample=on_bad_sample,
            max_bad=max_bad,
            max_unsupervised=max_unsupervised,
            worker_start=worker_start,
        )
        self.path, self.images, self.heldout_path, self.format = path, images, heldout_path, format

    def source(self) -> Source:
        return FORMATS[self.format](self.path, self.images)

    @property
    def heldout_source(self) -> Source | None:
        """The conversations that are never trained on, by number."""
        return None if self.heldout_path is None else FORMATS[self.format](self.heldout_path, self.images)

    def heldout(self, count: int | None = None) -> list[Document]:
        source = self.heldout_source
        if source is None:
            return []
        return [source[i] for i in range(len(source) if count is None else min(count, len(source)))]
