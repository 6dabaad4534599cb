"""Prints of nano pages for the pre-training of the vision encoder."""

from __future__ import annotations

from lit_mm.documents.document import Document
from lit_mm.nano.prints import Prints
from lit_mm.samples.length import Length
from lit_mm.samples.processor import Processor
from lit_mm.stages.stage import Stage
from lit_mm.stream.datamodule import Source, StreamDataModule
from lit_mm.stream.order import Plan, RowStream, stable_hash


class NanoPrints(StreamDataModule):
    """This data module generates printed pages without text, one page per row.

    Args:
        pages: number of training pages.
        size: side of a print, pixels.
        split: split of the nano world for training, one of train, heldout, text and pixels.
        world_seed: seed of the generated pages, independent of the seed of the run.
        patch: side of a patch of the encoder, pixels.
        close_ups: share of pages, 0 to 1, that are shown as an enlarged part.
        global_batch, micro_batch, num_workers: see `StreamDataModule`.
    """

    def __init__(
        self,
        pages: int = 100_000,
        size: int = 112,
        split: str = "pixels",
        world_seed: int = 0,
        patch: int = 14,
        close_ups: float = 0.0,
        global_batch: int = 64,
        micro_batch: int | None = None,
        num_workers: int = 1,
    ) -> None:
        super().__init__(global_batch, micro_batch, num_workers=num_workers)
        self.pages, self.size, self.split, self.world_seed = pages, size, split, world_seed
        self.patch, self.close_ups = patch, close_ups

    def source(self) -> Source:
        return range(self.pages)

    def heldout(self, count: int | None = None) -> list[Document]:
        return []  # prints have no questions

    def begin(self, processor: Processor | None, stage: Stage, *, seed: int, rank: int = 0, world: int = 1) -> int:
        self.rows = Prints(
            self.size, split=self.split, seed=self.world_seed, patch=self.patch, close_ups=self.close_ups
        )
        plan = Plan(self.pages, lambda number: Length(1, 1, 1), seed=stable_hash(seed, stage.name), row_tokens=None)
        steps = stage.max_steps or -(-plan.rows_of(stage.epochs) // self.global_batch)
        micro = self.micro_batch or max(1, self.global_batch // world)
        self.stream = RowStream(
            plan, steps=steps, global_batch=self.global_batch, micro_batch=micro, rank=rank, world=world
        )
        return steps
