"""The base of all data modules: a planned, index-addressed stream of packed rows. Its whole state is one integer."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import replace
from itertools import chain, islice
from typing import Any, Protocol

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lit_mm.batch import Batch
from lit_mm.data import lengths
from lit_mm.data.collate import collate
from lit_mm.data.document import Document
from lit_mm.data.mixture import Interleaved, Joined
from lit_mm.data.order import Length, MicroBatch, Plan, RowStream, stable_hash
from lit_mm.data.progress import bar
from lit_mm.data.screen import FEW, BadSample, Fault, SampleMaker, Screen, TooLong, unlearnt
from lit_mm.errors import UserError
from lit_mm.processor import Processor, Sample
from lit_mm.stages import Stage

PREFETCH = 4  # micro-batches that a worker makes ahead


class Source(Protocol):
    """Documents by number, without their pixels."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Document: ...


class Rows(Dataset):
    """Makes the batch of a `MicroBatch`: tokenising, decoding, tiling and collating happen here, in the workers.

    A sample whose pixels cannot be read is *lost* unless `on_bad_sample` is fail: it keeps its positions and gets blank
    views of the same shapes, so nothing moves for the others, and it carries no label. The loss counts it as one that
    is learnt perfectly: its tokens stay in the planned denominator `step_tokens`, its share of the sum is zero, and
    every other sample has the gradient it would have had beside a sound neighbour. A sample whose entry has become
    unreadable since it was planned leaves its row shorter, and counts in the same way.

    Args:
        maker: makes the samples.
        on_bad_sample: fail lets the error through.
    """

    def __init__(self, maker: SampleMaker, on_bad_sample: BadSample = "fail") -> None:
        self.maker, self.on_bad_sample = maker, on_bad_sample

    def __getitem__(self, micro: MicroBatch) -> Batch:
        documents = self.maker.documents
        lost: list[Fault] = []
        planned = dict(zip(chain(*micro.rows), chain(*micro.lengths), strict=False))
        rows = [
            [(number, *made) for number in row if (made := self._make(number, planned.get(number), lost))]
            for row in micro.rows
        ]
        gone = {fault.number for fault in lost}
        held = Counter(documents.source_of(number) for row in micro.rows for number in row if number not in gone)
        batch = collate(
            [[sample for _, sample, _ in row] for row in rows],
            self.maker.processor,
            step_tokens=micro.step_tokens,
            views=[views for row in rows for _, _, views in row],
            sources=[[documents.source_of(number) for number, _, _ in row] for row in rows]
            if len(documents.names) > 1
            else None,
        )
        return replace(
            batch,
            sample_ids=tuple(sample.document.id for row in rows for number, sample, _ in row if number not in gone),
            held=tuple(held[source] for source in range(len(documents.names))),
            lost=tuple(lost),
        )

    def _make(self, number: int, planned: Length | None, lost: list[Fault]) -> tuple[Sample, list[Tensor]] | None:
        """A sample and its views; None, and an entry in `lost`, where there is no sample at all any more.

        Raises:
            UserError: its length is not the planned one, whatever happens to bad samples: rows would overflow.
        """
        document: Document | None = None
        sample: Sample | None = None
        try:
            document = self.maker.documents[number]
            sample, _ = self.maker.make(document)
            views = [] if self.maker.processor.token_grid is None else self.maker.processor.views(sample)
        except UserError as error:
            if self.on_bad_sample == "fail":
                raise
            lost.append(Fault.of(number, error, document.id if document is not None else ""))
            return None if sample is None else unlearnt(sample)
        if planned is not None and sample.length != planned:
            raise UserError(
                f"sample {document.id!r} takes {sample.length.tokens} tokens, {sample.length.views} views and "
                f"{sample.length.supervised} supervised tokens; it was planned with {planned.tokens}, {planned.views} "
                f"and {planned.supervised}. Has its image or the model changed? `data index --rebuild` makes the index "
                "anew"
            )
        return sample, views


def end_with_parent(worker: int) -> None:
    """Start of a loader's worker: it ends as soon as its trainer is gone, however that ended, and not before.

    torch's own watchdog asks for its parent's id when it starts. A trainer that is killed before that leaves a worker
    that takes the adopting process for its trainer, and holds its memory for ever.

    A terminal, a launcher or SLURM sends its signals to the workers, too. The trainer still needs them for the step
    after which it will save and end, so they heed the SIGTERM of their trainer alone.

    Args:
        worker: its number; torch passes it.
    """

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    def heed() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # in the threads that start from here on, too
        threading.Thread(target=heed, daemon=True).start()
    threading.Thread(target=watch, daemon=True).start()


class StreamDataModule(L.LightningDataModule, ABC):
    """Feeds one stage at a time.

    Args:
        global_batch: rows per optimizer step over all ranks. A row is a pack of samples, or one sample without packing.
        micro_batch: rows per rank and forward; left out, the global batch in one forward per rank. Accumulation is
            derived, and must be whole.
        row_tokens: the most tokens in a packed row. null switches packing off: a row is one sample, and the rows of a
            micro-batch are padded to the longest.
        row_views: the most image views in a packed row; null for no limit.
        window: samples that are packed together.
        num_workers: worker processes of the loader; the stream does not depend on it.
        too_long: what happens to a sample that is longer than the model's `max_length` or than a row: truncate cuts its
            end off, never a part of an image; refuse makes it a bad sample.
        on_bad_sample: what happens to a sample that cannot be read, does not fit, or has nothing to learn: fail stops
            the run; skip leaves it out and counts it by reason; quarantine also lists it by id in ledger.jsonl.
        max_bad: share of bad samples above which the run stops all the same. It is counted over at least 1000 samples,
            or over the whole data set where that is smaller.
        max_unsupervised: the same, before the first step already, for samples with nothing to learn, which `max_bad`
            does not count.
    """

    def __init__(
        self,
        global_batch: int = 8,
        micro_batch: int | None = None,
        row_tokens: int | None = None,
        row_views: int | None = None,
        window: int = 1024,
        num_workers: int = 1,
        too_long: TooLong = "refuse",
        on_bad_sample: BadSample = "fail",
        max_bad: float = 0.01,
        max_unsupervised: float = 0.05,
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
        shares = {"max_bad": max_bad, "max_unsupervised": max_unsupervised}
        if wrong := {name: share for name, share in shares.items() if not 0 <= share <= 1}:
            raise UserError(f"the data section needs shares from 0 to 1, got {wrong}")
        self.num_workers = num_workers
        self.too_long, self.on_bad_sample = too_long, on_bad_sample
        self.max_bad, self.max_unsupervised = max_bad, max_unsupervised
        self.first_step = 0
        self.stream: RowStream | None = None
        self.screen: Screen | None = None  # what became of the samples; None before a stage, or where all are sound

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
        maker = self.maker(processor)
        joined = maker.documents
        self.rows = Rows(maker, self.on_bad_sample)
        self.screen = Screen(
            maker,
            on_bad_sample=self.on_bad_sample,
            max_bad=self.max_bad,
            max_unsupervised=self.max_unsupervised,
            kept=lengths.load(maker),
        )
        seed = stable_hash(seed, stage.name)
        plan = Plan(
            sum(joined.draws),
            self.screen,
            seed=seed,
            row_tokens=self.row_tokens,
            row_views=self.row_views,
            window=self.window,
            order=Interleaved(joined, seed) if len(joined.names) > 1 or joined.draws != joined.sizes else None,
        )
        steps = stage.max_steps or self._steps_of(plan, stage, tell=rank == 0)
        self.first_step = 0
        self.stream = RowStream(
            plan,
            steps=steps,
            global_batch=self.global_batch,
            micro_batch=self.micro_batch_on(world),
            rank=rank,
            world=world,
        )
        return steps

    def _steps_of(self, plan: Plan, stage: Stage, *, tell: bool) -> int:
        """Optimizer steps of a stage that counts epochs. Every sample without a kept length is laid out for it.

        Args:
            tell: what takes so long, on standard error.
        """
        documents = self.screen.maker.documents
        missing = [source for source, kept in zip(documents.sources, self.screen.kept, strict=True) if kept is None]
        if not missing or not tell:
            return -(-plan.rows_of(stage.epochs) // self.global_batch)
        text = f"lit_mm: stage {stage.name!r} counts epochs: to know its steps, all samples are laid out first"
        if any(isinstance(source, lengths.Source) for source in missing):  # others have no files to name an index by
            text += ". `python -m lit_mm data index --config RECIPE` keeps their lengths, and later starts are quick"
        print(text, file=sys.stderr, flush=True)
        with bar(f"laying out {stage.name}", len(documents)) as self.screen.progress:
            rows = plan.rows_of(stage.epochs)
        self.screen.progress = None
        return -(-rows // self.global_batch)

    def micro_batch_on(self, world: int) -> int:
        """Rows per rank and forward on so many ranks."""
        return self.micro_batch or max(1, self.global_batch // world)

    def maker(self, processor: Processor) -> SampleMaker:
        """What makes the samples of the current stage."""
        source = self.source()
        return SampleMaker(
            source if isinstance(source, Joined) else Joined([source], [name_of(source)]),
            processor,
            too_long=self.too_long,
            row_tokens=self.row_tokens,
            row_views=self.row_views if self.row_tokens else None,
        )

    def train_dataloader(self) -> DataLoader:
        if self.stream is None:
            raise UserError("no stage has begun: this data module is driven by a recipe with `stages:` (lit_mm fit)")
        self.stream.first_step = self.first_step
        # A loader asks for its first micro-batches while its workers start. A mistake in the data that stops it there
        # leaves half a loader, whose clean-up writes tracebacks of its own: so the mistake shall show before.
        if self.screen is not None and not self.first_step:
            for number in self.stream.plan.first(FEW):  # too many samples with nothing to learn end the run here
                self.screen(number)
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
        """Optimizer steps finished: the same on every rank, and all there is to the position in the stream.

        `mark` follows from them. It spares a restart the packing of all windows before (see `Plan`).
        """
        finished = self.trainer.global_step
        mark = self.stream.plan.mark(max(0, finished * self.global_batch - 1))
        return {"finished_steps": finished, "global_batch": self.global_batch, "mark": list(mark)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["global_batch"] != self.global_batch:
            raise UserError(
                f"the checkpoint was made with global_batch {state['global_batch']}, the config says "
                f"{self.global_batch}: the stream would not continue. Set it back, or start a new run folder"
            )
        self.first_step = state["finished_steps"]
        if "mark" in state:  # not in checkpoints of before
            number, rows = state["mark"]
            self.stream.plan.go_to((number, rows))


def name_of(source: Source) -> str:
    """A source's name in logs and in the ledger: its own, or its class."""
    return getattr(source, "name", None) or type(source).__name__
