"""The base of all data modules: a planned stream of packed rows with one integer of state, the finished steps."""

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
PREFETCH = 4  # micro-batches that a worker prepares ahead


class Source(Protocol):
    """A source returns documents by number, without reading pixels."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Document: ...


class StreamDataModule(L.LightningDataModule, ABC):
    """A data module feeds the samples of one stage at a time, in a planned order.

    Args:
        global_batch: rows per optimizer step over all ranks. A row is a pack of samples, or one sample without packing.
        micro_batch: rows per rank and forward. None takes the global batch in one forward per rank. Accumulation is
            computed from it and must be a whole number.
        row_tokens: largest number of tokens in a packed row. None switches packing off, so that a row is one sample.
        row_views: largest number of image views in a packed row; None for no limit.
        window: number of samples that are packed together.
        num_workers: number of worker processes of the loader. The order of samples does not depend on it.
        too_long: policy for samples longer than `max_length` of the model or than a row. "truncate" cuts off the end,
            but never a part of an image; "refuse" makes the sample a bad sample.
        on_bad_sample: policy for samples that cannot be read, do not fit, or have nothing to learn. "fail" stops the
            run; "skip" leaves the sample out and counts it by reason; "quarantine" also lists its id in ledger.jsonl.
        max_bad: largest share of bad samples, 0 to 1; above it the run stops under any policy. The share is taken over
            at least 1000 samples, or over the whole data set if that is smaller.
        max_unsupervised: largest share of samples with nothing to learn, 0 to 1; it is also tested before the first
            step. `max_bad` does not count these samples.
        worker_start: method that starts worker processes. "fork" is quick; "forkserver" and "spawn" take some seconds
            per worker to start a new interpreter, and share no locks with threads of the trainer. None takes the
            default of Python.
    Raises:
        UserError: a count or a share is out of its range.
    """

    training_arguments: tuple[str, ...] = ()  # arguments that only training data need

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
        invalid = {name: count for name, count in counts.items() if count is not None and count < 1}
        if invalid or num_workers < 0:
            raise UserError(
                f"counts of the data section are at least 1 (`num_workers` at least 0), got {invalid or num_workers}"
            )
        self.global_batch, self.micro_batch = global_batch, micro_batch
        self.row_tokens, self.row_views, self.window = row_tokens, row_views, window
        shares = {"max_bad": max_bad, "max_unsupervised": max_unsupervised}
        if invalid := {name: share for name, share in shares.items() if not 0 <= share <= 1}:
            raise UserError(f"the data section needs shares from 0 to 1, got {invalid}")
        self.num_workers, self.worker_start = num_workers, worker_start
        self.too_long, self.on_bad_sample = too_long, on_bad_sample
        self.max_bad, self.max_unsupervised = max_bad, max_unsupervised
        self.first_step = 0
        self.stream: RowStream | None = None
        self.screens: list[Screen] = []  # one screen per phase of the stage
        self.screen: Screen | None = None  # screen of the first phase; None before a stage, or if no sample can be bad

    @abstractmethod
    def source(self) -> Source:
        """Open the training documents of the current stage."""

    @abstractmethod
    def heldout(self, count: int | None = None) -> list[Document]:
        """Return documents that are never trained on; `count` limits their number, None takes the configured one."""

    def begin(self, processor: Processor, stage: Stage, *, seed: int, rank: int = 0, world: int = 1) -> int:
        """Plan a stage and return its number of optimizer steps: `max_steps`, or the steps of its epochs.

        The last step of an epoch is filled up with the first rows of the next epoch.

        Args:
            processor: processor of the stage.
            stage: the stage.
            seed: seed of the run.
            rank: number of this rank.
            world: number of ranks.
        Raises:
            UserError: the global batch does not split over the ranks, the inputs change after the end of the stage, or
                no sample can be trained on.
        """
        processors = [processor]
        for step in sorted(stage.inputs_from):
            processors.append(processors[-1].with_inputs(stage.inputs_from[step]))
        makers = [self.maker(variant) for variant in processors]
        rows = [Rows(maker, self.on_bad_sample, stable_hash(seed, stage.name)) for maker in makers]
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
                f"{steps} steps. Change the inputs before the stage ends"
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
        """Count the optimizer steps of a stage with a length in epochs. Samples without a stored length are laid out.

        Args:
            tell: True prints the reason for a long wait to standard error.
        """
        documents = self.screen.maker.documents
        tables = zip(documents.sources, self.screen.tables, strict=True)
        missing = [source for source, table in tables if table is None]
        if not missing or not tell:
            return -(-plan.rows_of(stage.epochs) // self.global_batch)
        text = f"lit_mm: stage {stage.name!r} counts epochs: all samples are laid out first to compute its steps"
        if any(isinstance(source, lengths.Stored) for source in missing):  # only sources with files can have an index
            text += ". `python -m lit_mm data index --config RECIPE` stores their lengths and makes later starts quick"
        print(text, file=sys.stderr, flush=True)
        with bar(f"laying out {stage.name}", len(documents)) as self.screen.progress:
            rows = plan.rows_of(stage.epochs)
        self.screen.progress = None
        return -(-rows // self.global_batch)

    def refuse_indexed_faults(self, processor: Processor, stage: str) -> None:
        """Lay out again the samples that the index marks as untrainable, if `on_bad_sample` is "fail".

        Args:
            processor: processor of the stage.
            stage: name of the stage, for the error.
        Raises:
            UserError: the stage refuses one of them.
        """
        if self.on_bad_sample != "fail":
            return
        maker = self.maker(processor)
        for source, table in enumerate(lengths.load(maker)):
            errors = [] if table is None else lengths.explain(maker, source, limit=1)
            if errors:
                raise UserError(
                    f"stage {stage!r} would stop at a sample that it refuses: {errors[0]}. `data check` lists all "
                    "such samples; `on_bad_sample: skip` leaves them out"
                )

    def screen_at(self, step: int) -> Screen:
        """Return the screen of optimizer step `step` of the stage, counted from 0."""
        return self.screens[self.stream.plan.phase_of(step * self.global_batch)]

    def micro_batch_on(self, world: int) -> int:
        """Return the rows per rank and forward on `world` ranks."""
        return self.micro_batch or max(1, self.global_batch // world)

    def source_names(self) -> list[str]:
        """Return the names of the sources, which documents have in their field `source`."""
        source = self.source()
        return list(source.names) if isinstance(source, Joined) else [name_of(source)]

    def maker(self, processor: Processor) -> SampleMaker:
        """Build the sample maker of the current stage."""
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
            raise UserError("no stage has begun. Use this data module in a recipe that has `stages:` (lit_mm fit)")
        self.stream.first_step = self.first_step
        # A loader asks for its first micro-batches while its workers start. An error in the data at that point leaves
        # half a loader, and its clean-up prints further tracebacks. So errors are provoked here, before it is built.
        if self.screen is not None and not self.first_step:
            for number in self.stream.plan.first(FEW):  # the run ends here if too many samples have nothing to learn
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
        """Return the number of finished optimizer steps. It is the position in the stream and equal on every rank.

        `mark` is computed from it; with it a restart need not pack all earlier windows (see `Plan`).
        """
        finished = self.trainer.global_step
        mark = self.stream.plan.mark(max(0, finished * self.global_batch - 1))
        return {"finished_steps": finished, "global_batch": self.global_batch, "mark": list(mark)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["global_batch"] != self.global_batch:
            raise UserError(
                f"the checkpoint has global_batch {state['global_batch']}, but the config has "
                f"{self.global_batch}, so the stream of samples could not be continued. Restore the old value, or "
                "start a new run folder"
            )
        self.first_step = state["finished_steps"]
        if "mark" in state:  # older checkpoints have no mark
            self.stream.plan.go_to(state["mark"])


def name_of(source: Source) -> str:
    """Return the name of a source for logs and the ledger: its attribute `name`, or else the name of its class."""
    return getattr(source, "name", None) or type(source).__name__
