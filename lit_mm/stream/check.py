"""Check of samples under the layouts of every stage. Worker processes find the samples that `fit` would refuse."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from lit_mm.documents.document import Document
from lit_mm.documents.sources.check import Documents
from lit_mm.documents.sources.errors import SampleError
from lit_mm.errors import UserError
from lit_mm.samples.processor import Sample, read
from lit_mm.stream.maker import SampleMaker, with_place
from lit_mm.stream.mixture import place_of
from lit_mm.stream.workers import end_with_parent

CHUNK = 256  # samples per task
FEW = 4 * CHUNK  # samples up to which a check starts no worker processes


@dataclass(frozen=True)
class Layout:
    """One way in which the samples of a source are laid out.

    Attributes:
        stages: names of the stages with this layout.
        maker: lays out documents within the limits of the stage.
    """

    stages: tuple[str, ...]
    maker: SampleMaker


@dataclass(frozen=True)
class Job:
    """A source and the layouts of its samples.

    Attributes:
        name: name of the source.
        documents: documents by number.
        layouts: layouts that differ; none where only pixels are decoded.
        asks: True for held-out documents. They are laid out without their last answer, as in generation.
    """

    name: str
    documents: Documents
    layouts: tuple[Layout, ...] = ()
    asks: bool = False

    def document(self, number: int) -> Document:
        """Return a document as training or generation reads it.

        Raises:
            UserError: the source refuses the document.
        """
        document = self.documents[number]
        return document if self.asks else replace(document, source=self.name)

    def sample(self, document: Document, layout: Layout) -> tuple[Sample, bool]:
        """Lay out a document. Return the sample, and True if its end was cut off.

        Raises:
            UserError: the template, the tiling or a limit of the stage refuses the document.
        """
        if self.asks:
            return layout.maker.processor.sample(document.without_answer()), False
        return layout.maker.make(document)


class Refusal(NamedTuple):
    """An error of one sample with the names of the stages that refuse it; () if the source or the pixels are broken."""

    error: SampleError
    stages: tuple[str, ...]


class Task(NamedTuple):
    """Samples `start` to `stop` of job `job`; pixels of a share of the samples are decoded, 0 to 1."""

    job: int
    start: int
    stop: int
    share: float


class Result(NamedTuple):
    """The result of a task.

    Attributes:
        stop: number behind the last sample of the task.
        refusals: refusals in the order of samples, one list per refused sample.
        apart: number of answers that are tokenised apart from their prompt, by stages.
        cut: number of samples that lose their end, by stages.
        decoded: number of pictures that were decoded.
    """

    stop: int
    refusals: list[list[Refusal]]
    apart: Counter[tuple[str, ...]]
    cut: Counter[tuple[str, ...]]
    decoded: int


def tasks_of(job: int, samples: int, share: float) -> Iterator[Task]:
    """Split the samples of a job into tasks."""
    for start, stop in pairwise([*range(0, samples, CHUNK), samples]):
        yield Task(job, start, stop, share)


def is_decoded(number: int, share: float) -> bool:
    """Return True if a sample's pixels are decoded. The share of such samples is spread evenly over the source."""
    return int((number + 1) * share) > int(number * share)


def run_task(jobs: Sequence[Job], task: Task) -> Result:
    """Check the samples of a task."""
    result = Result(task.stop, [], Counter(), Counter(), 0)
    decoded = 0
    for number in range(task.start, task.stop):
        refusals, pictures = check_sample(jobs[task.job], number, result, is_decoded(number, task.share))
        decoded += pictures
        if refusals:
            result.refusals.append(refusals)
    return result._replace(decoded=decoded)


def check_sample(job: Job, number: int, result: Result, decodes: bool) -> tuple[list[Refusal], int]:
    """Lay out a sample under all layouts of its job.

    Args:
        result: result of the task, whose `apart` and `cut` are increased.
        decodes: if True, the pixels are decoded as well, at the size that the first layout reads.
    Returns:
        The refusals, and the number of decoded pictures.
    """

    def refusal(error: UserError, document: Document | None, stages: tuple[str, ...] = ()) -> Refusal:
        return Refusal(with_place(error, lambda: place_of(job.documents, number), document), stages)

    try:
        document = job.document(number)
    except UserError as error:
        return [refusal(error, None)], 0
    by_reason: dict[str, Refusal] = {}
    sample: Sample | None = None
    for layout in job.layouts:
        try:
            laid_out, is_cut = job.sample(document, layout)
        except UserError as error:
            current = refusal(error, document, layout.stages)
            earlier = by_reason.get(current.error.reason)
            stages = (*earlier.stages, *layout.stages) if earlier is not None else layout.stages
            by_reason[current.error.reason] = current._replace(stages=stages)
            continue
        sample = sample or laid_out
        if laid_out.apart:
            result.apart[layout.stages] += laid_out.apart
        result.cut.update([layout.stages] * is_cut)
    refusals = list(by_reason.values())
    pictures = 0
    if decodes and not (job.layouts and sample is None):
        normalise = None if sample is None else job.layouts[0].maker.processor.normalise
        plans = None if sample is None else sample.plans
        try:
            for place, picture in enumerate(document.pictures if plans is None else document.pictures[: len(plans)]):
                read(picture, document.id, None if plans is None else normalise.least(plans[place].views))
                pictures += 1
        except UserError as error:
            refusals.append(refusal(error, document))
    return refusals, pictures


def worker_count() -> int:
    """Count the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@contextmanager
def runner(jobs: Sequence[Job], workers: int) -> Iterator[Callable[[Iterable[Task]], Iterator[Result]]]:
    """Provide, inside a `with` block, a function that runs tasks and yields their results in order.

    Args:
        workers: number of worker processes; 0 runs the tasks in this process.
    Raises:
        UserError: a worker process was killed.
    """
    if not workers:
        yield lambda tasks: map(partial(run_task, jobs), tasks)
        return
    with ProcessPoolExecutor(workers, initializer=_begin, initargs=(jobs,)) as pool:
        try:
            yield lambda tasks: pool.map(_run, tasks)
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process of the check was killed, perhaps because memory ran out. Use fewer workers: "
                "--workers 1"
            ) from error


_jobs: Sequence[Job] = ()  # jobs of this worker process


def _begin(jobs: Sequence[Job]) -> None:
    """Initialise a worker process."""
    global _jobs
    _jobs = jobs
    end_with_parent(0)


def _run(task: Task) -> Result:
    return run_task(_jobs, task)
