"""The base of all data modules: a planned, index-addressed stream of packed rows. Its whole state is one integer."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from itertools import islice
from typing import Any, Literal, Protocol

import lightning as L
from torch.utils.data import DataLoader

from lit_mm.documents.document import Document
from lit_mm.errors import UserError
from lit_mm.samples.processor import Processor
from lit_mm.stages.stage import Stage
from lit_mm.stream import lengths
from lit_mm.stream.maker import SampleMaker, TooLong
from lit_mm.stream.mixture import Interleaved, Joined
from lit_mm.stream.order import START, Head, Plan, RowStream, Stream, stable_hash
from lit_mm.stream.phases import PhasedRows, Phases
from lit_mm.stream.progress import bar
from lit_mm.stream.rows import Rows
from lit_mm.stream.screen import FEW, BadSample, Screen
from lit_mm.stream.workers import end_with_parent

WorkerStart = Literal["fork", "forkserver", "spawn"]
PREFETCH = 4  # micro-batches that a worker makes ahead


class Source(Protocol):
    """Documents by number, without their pixels."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Document: ...


class StreamDataModule(L.LightningDataModule, ABC):
    """Feeds one stage at a time.

    Args:
        global_batch: rows per optimizer step over all ranks. A row is a pack of samples, or one sample without packing.
        micro_batch: rows per rank and forward; left out, the global batch in one forward per rank. Accumulation is
            derived, and must be whole.
        row_tokens: largest number of tokens in a packed row; null switches packing off, so that a row is one sample.
        row_views: largest number of image views in a packed row; null for no limit.
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
        worker_start: start of the worker processes: fork is quick; forkserver and spawn begin with a fresh interpreter,
            some seconds each, and share no locks with the trainer's threads. None: as Python starts processes here.
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
        worker_start: WorkerStart | None = None,
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
        self.num_workers, self.worker_start = num_workers, worker_start
        self.too_long, self.on_bad_sample = too_long, on_bad_sample
        self.max_bad, self.max_unsupervised = max_bad, max_unsupervised
        self.first_step = 0
        self.stream: RowStream | None = None
        self.screens: list[Screen] = []  # of every phase of the stage
        self.screen: Screen | None = None  # of the first phase; None before a stage, or if all samples are sound

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
        processors = [processor]
        for step in sorted(stage.inputs_from):
            processors.append(processors[-1].with_inputs(stage.inputs_from[step]))
        makers = [self.maker(variant) for variant in processors]
        rows = [Rows(maker, self.on_bad_sample) for maker in makers]
        self.rows = PhasedRows(rows) if len(rows) > 1 else rows[0]
        self.screens = [
            Screen(
                maker,
                on_bad_sample=self.on_bad_sample,
                max_bad=self.max_bad,
                max_unsupervised=self.max_unsupervised,
                tables=lengths.load(maker),
            )
            for maker in makers
        ]
        self.screen, joined = self.screens[0], makers[0].documents
        seed = stable_hash(seed, stage.name)

        def plan_of(phase: int, head: Head = START) -> Plan:
            return Plan(
                sum(joined.draws),
                self.screens[phase],
                seed=seed,
                row_tokens=self.row_tokens,
                row_views=self.row_views,
                window=self.window,
                order=Interleaved(joined, seed) if len(joined.names) > 1 or joined.draws != joined.sizes else None,
                head=head,
            )

        starts = [0, *(step * self.global_batch for step in sorted(stage.inputs_from))]
        plan = Phases(starts, plan_of) if len(starts) > 1 else plan_of(0)
        steps = stage.max_steps or self._steps_of(plan, stage, tell=rank == 0)
        if starts[-1] >= steps * self.global_batch:
            raise UserError(
                f"stages.{stage.name}.inputs_from: the last change is at step {max(stage.inputs_from)}, the stage has "
                f"{steps} steps. Change the inputs before its end"
            )
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

    def _steps_of(self, plan: Stream, stage: Stage, *, tell: bool) -> int:
        """Optimizer steps of a stage that counts epochs. Every sample without a kept length is laid out for it.

        Args:
            tell: what takes so long, on standard error.
        """
        documents = self.screen.maker.documents
        tables = zip(documents.sources, self.screen.tables, strict=True)
        missing = [source for source, table in tables if table is None]
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

    def screen_at(self, step: int) -> Screen:
        """The screen of optimizer step `step` of the stage, counted from 0."""
        return self.screens[self.stream.plan.phase_of(step * self.global_batch)]

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
            multiprocessing_context=self.worker_start if self.num_workers else None,
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
            self.stream.plan.go_to(state["mark"])


def name_of(source: Source) -> str:
    """A source's name in logs and in the ledger: its own, or its class."""
    return getattr(source, "name", None) or type(source).__name__
