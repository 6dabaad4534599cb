"""The base of all data modules: a planned, index-addressed stream of packed rows. Its whole state is one integer."""

from __future__ import annotations

import multiprocessing
import os
import threading
from abc import ABC, abstractmethod
from itertools import islice
from typing import Any, Protocol

import lightning as L
from torch.utils.data import DataLoader, Dataset

from lit_mm.batch import Batch
from lit_mm.data.collate import collate
from lit_mm.data.document import Document
from lit_mm.data.order import Length, MicroBatch, Plan, RowStream, stable_hash
from lit_mm.errors import UserError
from lit_mm.processor import Processor
from lit_mm.stages import Stage

PREFETCH = 4  # micro-batches that a worker makes ahead


class Source(Protocol):
    """Documents by number, without their pixels."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Document: ...


class Rows(Dataset):
    """Makes the batch of a `MicroBatch`: tokenising, decoding, tiling and collating happen here, in the workers."""

    def __init__(self, source: Source, processor: Processor) -> None:
        self.source, self.processor = source, processor

    def __getitem__(self, micro: MicroBatch) -> Batch:
        rows = [[self.processor.sample(self.source[number]) for number in row] for row in micro.rows]
        return collate(rows, self.processor, step_tokens=micro.step_tokens)


class Lengths:
    """Sample number -> `Length`, computed once per sample."""

    def __init__(self, source: Source, processor: Processor) -> None:
        self.source, self.processor = source, processor
        self.known: dict[int, Length] = {}

    def __call__(self, number: int) -> Length:
        if number not in self.known:
            self.known[number] = self.processor.sample(self.source[number]).length
        return self.known[number]


def end_with_parent(worker: int) -> None:
    """Start of a loader's worker: it ends as soon as its trainer is gone, however that ended.

    torch's own watchdog asks for its parent's id when it starts. A trainer that is killed before that leaves a worker
    that takes the adopting process for its trainer, and holds its memory for ever.

    Args:
        worker: its number; torch passes it.
    """

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class StreamDataModule(L.LightningDataModule, ABC):
    """Feeds one stage at a time.

    Args:
        global_batch: rows per optimizer step over all ranks. A row is a pack of samples, or one sample without packing.
        micro_batch: rows per rank and forward; left out, the global batch in one forward per rank. Accumulation is
            derived, and must be whole.
        row_tokens: packing: the most tokens in a row; None for one sample a row.
        row_views: packing: the most image views in a row; None for no limit.
        window: samples that are packed together.
        num_workers: worker processes of the loader; the stream does not depend on it.
    """

    def __init__(
        self,
        global_batch: int = 8,
        micro_batch: int | None = None,
        row_tokens: int | None = None,
        row_views: int | None = None,
        window: int = 1024,
        num_workers: int = 1,
    ) -> None:
        super().__init__()
        counts = {
            "global_batch": global_batch,
            "micro_batch": micro_batch,
            "row_tokens": row_tokens,
            "row_views": row_views,
            "window": window,
        }
        wrong = {name: count for name, count in counts.items() if count is not None and count < 1}
        if wrong or num_workers < 0:
            raise UserError(f"the data section counts from 1 (`num_workers` from 0), got {wrong or num_workers}")
        self.global_batch, self.micro_batch = global_batch, micro_batch
        self.row_tokens, self.row_views, self.window = row_tokens, row_views, window
        self.num_workers = num_workers
        self.first_step = 0
        self.stream: RowStream | None = None

    @abstractmethod
    def source(self) -> Source:
        """The training documents of the current stage."""

    @abstractmethod
    def heldout(self, count: int | None = None) -> list[Document]:
        """Documents that are never trained on; `count` None for as many as are configured."""

    def begin(self, processor: Processor, stage: Stage, *, seed: int, rank: int = 0, world: int = 1) -> int:
        """Plan the stage. Returns its optimizer steps: `max_steps`, or as many as its epochs take.

        The last step of an epoch is filled with the first rows of the next.
        """
        source = self.source()
        self.rows = Rows(source, processor)
        plan = Plan(
            len(source),
            Lengths(source, processor),
            seed=stable_hash(seed, stage.name),
            row_tokens=self.row_tokens,
            row_views=self.row_views,
            window=self.window,
        )
        steps = stage.max_steps or -(-plan.rows_of(stage.epochs) // self.global_batch)
        self.first_step = 0
        self.stream = RowStream(
            plan,
            steps=steps,
            global_batch=self.global_batch,
            micro_batch=self.micro_batch or max(1, self.global_batch // world),
            rank=rank,
            world=world,
        )
        return steps

    def train_dataloader(self) -> DataLoader:
        if self.stream is None:
            raise UserError("no stage has begun: this data module is driven by a recipe with `stages:` (lit_mm fit)")
        self.stream.first_step = self.first_step
        # A loader asks for its first micro-batches while its workers start. A mistake in the data that stops it there
        # leaves half a loader, whose clean-up writes tracebacks of its own: so the mistake shall show before.
        for _ in islice(self.stream, PREFETCH * self.num_workers):
            pass
        return DataLoader(
            self.rows,
            sampler=self.stream,
            batch_size=None,
            num_workers=self.num_workers,
            worker_init_fn=end_with_parent,
            prefetch_factor=PREFETCH if self.num_workers else None,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        )

    def state_dict(self) -> dict[str, Any]:
        """Optimizer steps finished: the same on every rank, and all there is to the position in the stream."""
        return {"finished_steps": self.trainer.global_step, "global_batch": self.global_batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["global_batch"] != self.global_batch:
            raise UserError(
                f"the checkpoint was made with global_batch {state['global_batch']}, the config says "
                f"{self.global_batch}: the stream would not continue. Set it back, or start a new run folder"
            )
        self.first_step = state["finished_steps"]
