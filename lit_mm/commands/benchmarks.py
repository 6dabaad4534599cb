"""The part of `evaluate` that measures checkpoints on benchmarks."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only

from lit_mm.commands.trained import launch_folder, open_model
from lit_mm.errors import UserError
from lit_mm.evaluation.answering import answer_questions, digest_of_asking
from lit_mm.evaluation.benchmarks.benchmark import Benchmark, Procedure, benchmark_names, load_benchmark
from lit_mm.evaluation.benchmarks.question import Question
from lit_mm.evaluation.benchmarks.submission import write_submission
from lit_mm.evaluation.measurement import Contrast, Measurement, check_questions, contrast, measure, rows_of
from lit_mm.evaluation.metrics import check_metric
from lit_mm.module import MultimodalModule, family_of
from lit_mm.report.benchmark_tables import Line, benchmark_table, contrast_table

PAUSE = 30.0  # seconds between two lines of progress


@dataclass(frozen=True)
class Task:
    """A split of a benchmark with its questions.

    Attributes:
        benchmark: benchmark.
        split: name of the split.
        questions: questions.
        digest: digest of the benchmark's files.
    """

    benchmark: Benchmark
    split: str
    questions: Sequence[Question]
    digest: str

    @property
    def name(self) -> str:
        return f"{self.benchmark.name}:{self.split}"


class Progress:
    """Prints the share of answered batches and the time that is left, at most every half minute.

    Args:
        title: text in front of the share.
    """

    def __init__(self, title: str) -> None:
        self.title, self.start = title, time.monotonic()
        self.latest = self.start

    def __call__(self, answered: int, total: int) -> None:
        """Note that batches were answered; see `lit_mm.evaluation.answering.answer_questions`."""
        now = time.monotonic()
        if now - self.latest >= PAUSE:
            self.latest = now
            left = (now - self.start) * (total - answered) / answered
            _print(f"lit_mm: {self.title}, {answered} of {total} batches, {left / 60:.0f} minutes left")


def list_benchmarks(names: Sequence[str] = ()) -> str:
    """Describe what benchmarks need and where their files must lie.

    Args:
        names: names or files of benchmarks; empty for all that come with the package.
    """
    lines = []
    for name in names or benchmark_names():
        benchmark = load_benchmark(name)
        lines.append(f"{name}: {benchmark.title}. Files: {benchmark.home}")
        for split, details in benchmark.splits.items():
            size = f", {details.size} questions" if details.size else ""
            server = f", answers at {details.submission.url}" if details.submission else ""
            lines.append(f"  {name}:{split}{size}{server}")
            complete = [details.submission.all_of] if details.submission and details.submission.all_of else []
            lines += [f"    DIR/{path}" for path in [*benchmark.reader_of(split).layout(), *complete]]
        for procedure in benchmark.procedures:
            families = ", ".join(procedure.families) or "all others"
            way = "" if procedure.answering == "generation" else f", by {procedure.answering}"
            prompt = f"; prompt {procedure.prompt_mark}: {procedure.source}" if procedure.prompt_mark else ""
            lines.append(f"  procedure {procedure.name} ({families}): {procedure.metric}{way}{prompt}")
    return "\n".join(lines)


@contextmanager
def joined_ranks() -> Iterator[None]:
    """Join the processes of torchrun, among which questions are shared out, for a `with` block or a function.

    One process alone joins nothing. Ranks exchange texts only, so gloo serves on every device. A rank that ended before
    it had left the group was sometimes aborted by the threads of the group.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


@joined_ranks()
def evaluate_benchmarks(choices: Namespace) -> None:
    """Measure checkpoints on benchmarks and print figures, intervals and comparisons.

    Args:
        choices: parsed options of `evaluate`.
    Raises:
        UserError: an option is missing, a benchmark cannot be read, or a model cannot answer it.
    """
    if choices.data is None:
        raise UserError("--benchmarks needs --data DIR, the folder of all benchmarks; --list shows the layout")
    data = Path(choices.data).absolute()
    tasks = [open_task(name, data, choices.documents) for name in choices.benchmarks.split(",")]
    titles = [task.name for task in tasks]
    if repeated := [title for title in titles if titles.count(title) > 1]:
        raise UserError(f"--benchmarks names {repeated[0]} twice. Remove one, or rename its file")
    names = model_names(choices.checkpoint)
    lines: list[Line] = []
    procedures: dict[tuple[str, str], Procedure] = {}
    for place, name in zip(choices.checkpoint, names, strict=True):
        with launch_folder(place, choices.config, choices.stage) as path:
            module = on_device_of_rank(
                open_model(path, choices.config, accelerator=choices.accelerator, averaged=choices.averaged)
            )
            weights = digest_of_weights(Path(path), choices.config, averaged=choices.averaged)
            for task in tasks:
                procedures[name, task.name] = procedure_of(task, module, choices.procedure)
            for task in tasks:
                procedure = procedures[name, task.name]
                lines.append(evaluate_task(module, task, procedure, Path(path), weights, data, choices, name))
            del module
    if dist.is_initialized() and dist.get_rank():
        return
    contrasts, notes = compare(lines, procedures, choices.difference and choices.difference / 100)
    if choices.format == "json":
        print(
            json.dumps({"benchmarks": [as_json(line) for line in lines], "comparisons": [asdict(c) for c in contrasts]})
        )
        return
    print(benchmark_table(lines))
    if contrasts:
        print(contrast_table(contrasts))
    for note in notes:
        print(note)


def on_device_of_rank(module: MultimodalModule) -> MultimodalModule:
    """Move a model from the first GPU to that of this rank; a model on another device stays."""
    if dist.is_initialized() and module.device.type == "cuda":
        module.to(torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))))
    return module


def open_task(text: str, data: Path, limit: int | None) -> Task:
    """Read the questions of "NAME" or "NAME:SPLIT", where NAME may be a file of your own, such as mine.yaml.

    Raises:
        UserError: there is no such benchmark or split, its files cannot be read, or a submission was limited.
    """
    name, _, split = text.strip().partition(":")
    benchmark = load_benchmark(name)
    split = benchmark.split(split)
    submission = benchmark.splits[split].submission
    if limit is not None and submission is not None:
        raise UserError(f"{name}:{split} is evaluated by a server, which needs all answers. Leave out --documents")
    if submission is not None and submission.all_of and not (data / submission.all_of).is_file():
        raise UserError(
            f"there is no {str(data / submission.all_of)!r}, which lists the questions that the server of "
            f"{name}:{split} expects answers to"
        )
    reader = benchmark.reader_of(split)
    return Task(benchmark, split, reader.questions(data, limit), reader.digest(data))


def procedure_of(task: Task, module: MultimodalModule, name: str) -> Procedure:
    """Return the procedure by which a model is asked.

    Args:
        task: benchmark.
        module: model.
        name: name of a procedure; "" for that of the model's family.
    Raises:
        UserError: there is no such procedure, its metric lacks a package, or it cannot score a question.
    """
    procedure = task.benchmark.procedure_of(type(module).__name__, name)
    if task.benchmark.splits[task.split].submission is None:
        check_metric(procedure.metric)
        check_questions(task.questions, procedure, task.name)
    return procedure


def model_names(places: Sequence[str]) -> list[str]:
    """Return short names of checkpoints, different from each other.

    Raises:
        UserError: a checkpoint is given twice.
    """
    if len(set(places)) < len(places):
        raise UserError(f"a checkpoint is given twice: {list(places)}")
    for depth in range(1, 1 + max(len(Path(place).parts) for place in places)):
        names = ["/".join(Path(place).parts[-depth:]) for place in places]
        if len(set(names)) == len(places):
            return names
    return list(places)


def digest_of_weights(checkpoint: Path, config: str | None, *, averaged: bool = False) -> str:
    """Compute the digest of a checkpoint's manifest, which has the digests of all its files, and of another config.

    Args:
        checkpoint: folder of the checkpoint.
        config: config that the model is built from; None for that of the checkpoint.
        averaged: True for the moving averages of the weights.
    """
    checksum = hashlib.blake2b((checkpoint / "manifest.json").read_bytes(), digest_size=16)
    if averaged:
        checksum.update(b"averaged")
    if config is not None:
        checksum.update(Path(config).read_bytes())
    return checksum.hexdigest()


def folder_of_evaluations(checkpoint: Path) -> Path:
    """Return the folder of a run's evaluations; for a checkpoint outside of a run, a folder beside it."""
    parent = checkpoint.parent
    return (parent.parent if parent.name == "checkpoints" else parent) / "evaluations"


def evaluate_task(
    module: MultimodalModule,
    task: Task,
    procedure: Procedure,
    checkpoint: Path,
    weights: str,
    data: Path,
    choices: Namespace,
    name: str,
) -> Line:
    """Answer one benchmark, score the answers or write the submission, and store the result.

    Args:
        module: model.
        task: questions.
        procedure: procedure of the model's family.
        checkpoint: folder of the checkpoint.
        weights: digest of the checkpoint.
        data: folder of all benchmarks.
        choices: parsed options of `evaluate`.
        name: name of the model in tables.
    """

    def answers_of(*, blind: bool) -> tuple[Path, dict[str, str]]:
        key = digest_of_asking(
            module,
            task.questions,
            procedure,
            weights=weights,
            data=task.digest,
            source=task.benchmark.name,
            batch_size=choices.batch_size,
            blind=blind,
        )
        folder = folder_of_evaluations(checkpoint) / f"{task.benchmark.name}-{task.split}" / key
        _print(f"lit_mm: {name}: {task.name}, {len(task.questions)} questions{' without sight' if blind else ''}")
        answers = answer_questions(
            module,
            task.questions,
            procedure,
            source=task.benchmark.name,
            folder=folder,
            batch_size=choices.batch_size,
            blind=blind,
            progress=Progress(f"{name}: {task.name}"),
        )
        return folder, answers

    def measured(answers: Mapping[str, str]) -> Measurement:
        return measure(task.benchmark, procedure, rows_of(task.questions, answers, procedure))

    folder, answers = answers_of(blind=False)
    submission = task.benchmark.splits[task.split].submission
    result = blind = None
    path = ""
    if submission is None:
        result = measured(answers)
        blind = measured(answers_of(blind=True)[1]) if choices.blind else None
    else:
        path = str(folder / f"submission.{submission.format}")
        if not dist.is_initialized() or not dist.get_rank():
            write_submission(submission, task.questions, answers, data, folder / "submission")
    published = task.benchmark.published_of(type(module).__name__)
    line = Line(name, task.benchmark, task.split, procedure, result, blind, published, path, str(folder))
    _write(
        folder / f"{procedure.name}.json", as_json(line) | {"checkpoint": str(checkpoint), "family": family_of(module)}
    )
    return line


def compare(
    lines: Sequence[Line], procedures: Mapping[tuple[str, str], Procedure], difference: float | None = None
) -> tuple[list[Contrast], list[str]]:
    """Compare every two models on every benchmark that both were scored on by one metric.

    Args:
        lines: lines of the table.
        procedures: (model, benchmark) -> procedure.
        difference: see `lit_mm.evaluation.measurement.contrast`.
    Returns:
        The comparisons, and a line for each benchmark on which two models cannot be compared.
    """
    pairs, notes = {}, []
    for a, b in combinations(lines, 2):
        if a.name != b.name or a.measurement is None or b.measurement is None:
            continue
        title = f"{a.name}: {b.model} - {a.model}"
        if a.measurement.metric != b.measurement.metric:
            notes.append(
                f"{title}: not compared, as the metrics are {b.measurement.metric} and {a.measurement.metric}. "
                "--procedure asks and scores both alike"
            )
            continue
        pairs[title] = (procedures[a.model, a.name], a.measurement, b.measurement)
    return contrast(pairs, difference=difference), notes


def as_json(line: Line) -> dict[str, object]:
    """Return a line of the table as data; figures are in the unit that papers print."""
    result = line.measurement
    entry: dict[str, object] = {
        "model": line.model,
        "benchmark": line.benchmark.name,
        "split": line.split,
        "procedure": line.procedure.name,
        "prompt": {"text": line.procedure.prompt, "mark": line.procedure.prompt_mark, "source": line.procedure.source},
        "published": [asdict(entry) for entry in line.published],
        "submission": line.submission,
        "folder": line.folder,
    }
    if result is not None:
        entry |= {
            "metric": result.metric,
            "figure": result.figure,
            "interval": [result.interval.low, result.interval.high],
            "blind": None if line.blind is None else line.blind.figure,
            "questions": result.count,
            "details": dict(result.details),
            "note": result.note,
        }
    return entry


@rank_zero_only
def _write(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@rank_zero_only
def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
