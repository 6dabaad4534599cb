"""`data check` lists the errors of a data set, and the samples that a stage of a recipe would refuse, before `fit`."""

from __future__ import annotations

import argparse
import io
import json
import shlex
import sys
from collections import Counter
from collections.abc import Container, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

from lit_mm.commands.data_sources import FINISHED, HELD_OUT, declaration_of, jobs_of, parsed
from lit_mm.errors import UserError
from lit_mm.stream.progress import bar

if TYPE_CHECKING:  # seconds of import, which --help and a misspelt option need not wait for
    from lit_mm.documents.sources import SampleError
    from lit_mm.documents.sources.check import Documents, Summary
    from lit_mm.stream.check import Job, Result

BROKEN = 2  # exit code of a data set with errors
FIT = ("python", "-m", "lit_mm", "fit")
OWN_DATA = "own_data"  # the recipe for a file of conversations


class Report:
    """Collects errors and prints them.

    Args:
        limit: number of errors that are listed; 0 lists all.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.errors = 0
        self.findings: list[tuple[str, SampleError, tuple[str, ...]]] = []  # source, error, stages that refuse it
        self.summaries: list[Summary] = []
        self.apart: list[Counter[tuple[str, ...]]] = []  # source -> stages -> number of answers apart from their prompt
        self.cut: list[Counter[tuple[str, ...]]] = []  # source -> stages -> number of samples that lose their end
        self.decoded = 0

    def add(self, source: str, error: SampleError, stages: tuple[str, ...] = ()) -> None:
        """Count an error, and list it within the limit."""
        self.errors += 1
        if not self.limit or len(self.findings) < self.limit:
            self.findings.append((source, error, stages))

    def include(self, source: str, result: Result, places: Container[str]) -> None:
        """Count the result of a task on the last source, and add its errors.

        Args:
            source: name of the source.
            result: result of the task.
            places: places of samples whose errors are listed already; these errors are not counted again.
        """
        summary = self.summaries[-1]
        self.apart[-1].update(result.apart)
        self.cut[-1].update(result.cut)
        self.decoded += result.decoded
        for refusals in result.refusals:
            errors = [(error, stages) for error, stages in refusals if stages or error.where not in places]
            summary.broken += bool(errors) and refusals[0].error.where not in places
            summary.kinds.update(error.kind for error, _ in errors)
            for error, stages in errors:
                self.add(source, error, stages)

    def as_dict(self) -> dict[str, Any]:
        """Return the report for machines."""
        from lit_mm.documents.sources.check import as_record

        findings = [
            {**as_record(source, error), **({"stages": list(stages)} if stages else {})}
            for source, error, stages in self.findings
        ]
        sources = [
            {**summary.as_dict(), "answers_apart": by_stage(apart), "truncated": by_stage(cut)}
            for summary, apart, cut in zip(self.summaries, self.apart, self.cut, strict=True)
        ]
        return {"ok": not self.errors, "errors": self.errors, "findings": findings, "sources": sources}

    def text(self) -> str:
        """Return the report for people: one line per error, a table, and notes."""
        lines = []
        for _, error, stages in self.findings:
            kind = f"{error.kind} in {stage_names(stages)}" if stages else error.kind
            text = f"{error.where or error.sample_id}: {kind}: {error.reason}"
            lines.append(". ".join(filter(None, (text, error.remedy))))
        if self.errors > len(self.findings):
            lines.append(f"... and {self.errors - len(self.findings)} more; --lines 0 lists all")
        lines.append(summary_table(self.summaries))
        for summary, apart, cut in zip(self.summaries, self.apart, self.cut, strict=True):
            lines += [f"{summary.name}: {note}" for note in summary.lines()]
            for stages, count in cut.items():
                lines.append(
                    f"{summary.name}: {count} samples are longer than a row or the model and lose their end, as "
                    f"`too_long: truncate` says ({stage_names(stages)})"
                )
            for stages, count in apart.items():
                lines.append(
                    f"{summary.name}: {count} answers begin with characters that merge with the prompt before them "
                    f"({stage_names(stages)}); they are tokenised apart from it, in training and in generation"
                )
        if self.decoded:
            lines.append(f"the pixels of {self.decoded} pictures were decoded")
        return "\n".join(lines)


def check(choices: argparse.Namespace) -> None:
    """Check all samples: placeholders against images, ids, files, image headers, empty answers, regions, JSON.

    With a recipe, every stage's template and limits are applied to every sample. All samples that pass are used for
    training, except those with damaged pixels, which only --pixels finds. The exit code is 2 if anything is wrong.
    """
    if choices.lines < 0:
        raise UserError(f"--lines is at least 0, got {choices.lines}")
    if not 0 <= choices.pixels <= 1:
        raise UserError(f"--pixels is a share of the samples from 0 to 1, got {choices.pixels:g}")
    if choices.workers is not None and choices.workers < 0:
        raise UserError(f"--workers is at least 0, got {choices.workers}")
    report = Report(choices.lines)
    if choices.source is None:
        jobs = jobs_of(parsed(choices.recipe, build=True), choices.stage)
        check_jobs(jobs, report, choices.pixels, choices.workers)
    else:
        from lit_mm.documents.sources import open_source

        declaration = declaration_of(choices.source)
        source = open_source(declaration)
        if choices.pixels:
            from lit_mm.stream.check import Job

            check_jobs([Job(source.name, source)], report, choices.pixels, choices.workers)
        else:
            check_entries(source.name, source, report, set())
    if choices.format == "json":
        print(json.dumps(report.as_dict()))
    else:
        print(report.text())
        if not report.errors:
            command = shlex.join([*FIT, *choices.recipe]) if choices.source is None else fit_command(declaration)
            print(f"next: {command}")
    if report.errors:
        sys.exit(BROKEN)


def check_entries(
    name: str, documents: Documents, report: Report, places: set[str], held_out: Set[int] = frozenset()
) -> None:
    """Check the entries and image headers of a source.

    Args:
        name: name of the source.
        documents: documents of the source.
        report: report that collects the errors.
        places: places of broken samples, to which those of this source are added. A place is not listed again, such as
            a held-out row of the same file.
        held_out: `content_hash` of the held-out documents.
    """
    from lit_mm.documents.sources.check import check_source

    earlier = frozenset(places)

    def append(error: SampleError) -> None:
        place = error.where or error.sample_id
        if place not in earlier:
            report.add(name, error)
            places.add(place)

    with bar(f"checking {name}", len(documents)) as progress:
        report.summaries.append(check_source(name, documents, append, progress, held_out))
    report.apart.append(Counter())
    report.cut.append(Counter())


def check_jobs(jobs: Sequence[Job], report: Report, share: float, workers: int | None) -> None:
    """Check the entries of every source, then its samples under all layouts.

    Args:
        jobs: sources with their layouts.
        report: report that collects the errors.
        share: share of the samples whose pixels are decoded, 0 to 1.
        workers: number of worker processes; None for the number of processors, or 0 if there are few samples.
    """
    from lit_mm.documents.sources.check import content_hashes
    from lit_mm.stream.check import FEW, runner, tasks_of, worker_count

    if workers is None:
        workers = worker_count() if max(len(job.documents) for job in jobs) > FEW else 0
    held_out: set[int] = set().union(*(content_hashes(job.documents) for job in jobs if job.name == HELD_OUT))
    with runner(jobs, workers) as run:
        places: set[str] = set()  # places of samples whose errors are listed already
        for number, job in enumerate(jobs):
            hashes = frozenset() if job.name == HELD_OUT else held_out
            check_entries(job.name, job.documents, report, places, hashes)
            if not job.layouts and not share:
                continue
            with bar(f"laying out {job.name}", len(job.documents)) as progress:
                for result in run(tasks_of(number, len(job.documents), share)):
                    progress(result.stop)
                    report.include(job.name, result, places)


def fit_command(declaration: Mapping[str, Any]) -> str:
    """Return the command that trains the nano model on a source.

    Args:
        declaration: keys of `--source`.
    """
    from lit_mm.documents.sources import FORMATS
    from lit_mm.documents.sources.conversations import Conversations

    keys = ("path", "images", "format")
    if issubclass(FORMATS[declaration["format"]], Conversations) and declaration.keys() <= {*keys, "name"}:
        words = [word for key in keys if key in declaration for word in (f"--data.init_args.{key}", declaration[key])]
        return shlex.join([*FIT, "--config", OWN_DATA, *words])
    corpus = {"name": "own", **declaration}
    return shlex.join([*FIT, "--config", OWN_DATA, "--data", "Corpora", "--data.corpora", json.dumps([corpus])])


def by_stage(counts: Mapping[tuple[str, ...], int]) -> dict[str, int]:
    """Return stages -> count as a JSON object."""
    return {", ".join(stages): count for stages, count in counts.items()}


def stage_names(stages: Sequence[str]) -> str:
    """Join names of stages for a sentence."""
    if stages == (FINISHED,):
        return FINISHED
    return f"stage {stages[0]}" if len(stages) == 1 else f"stages {', '.join(stages)}"


def summary_table(summaries: Sequence[Summary]) -> str:
    """Build a table of the samples, pictures and errors of every source."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAVY, pad_edge=False)
    for column, justify in (("source", "left"), ("samples", "right"), ("pictures", "right"), ("broken", "right")):
        table.add_column(column, justify=justify)
    table.add_column("errors")
    for summary in summaries:
        kinds = ", ".join(f"{count} {kind}" for kind, count in summary.kinds.most_common()) or "none"
        table.add_row(summary.name, str(summary.samples), str(summary.pictures), str(summary.broken), kinds)
    console = Console(file=io.StringIO(), width=120, markup=False, emoji=False)
    console.print(table)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()).strip("\n")
