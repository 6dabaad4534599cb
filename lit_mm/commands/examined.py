"""Opens the documents and benchmarks that stages measure, so that a mistake is reported before the training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lit_mm.datamodules.held_out import HeldOut
from lit_mm.documents.document import Document
from lit_mm.documents.sources import open_source
from lit_mm.errors import UserError
from lit_mm.evaluation.benchmarks.benchmark import load_benchmark
from lit_mm.evaluation.figures import BenchmarkFigures, DocumentFigures, Figures
from lit_mm.stages.examine import HELD_OUT, Examine
from lit_mm.stages.stage import Stage


def measures_of(stages: Sequence[Stage], held_out: Callable[[int | None], list[Document]]) -> dict[str, list[Figures]]:
    """Open the documents and benchmarks that stages name.

    Args:
        stages: stages of the recipe.
        held_out: function that returns the recipe's held-out documents, as many as its argument says; None returns as
            many as an examination takes.
    Returns:
        Name of a stage -> the sets of figures that it measures; stages without `examine` are left out.
    Raises:
        UserError: documents or a benchmark cannot be read, or a metric is unknown.
    """
    measures = {}
    for stage in stages:
        if stage.examine is not None:
            try:
                measures[stage.name] = _measures(stage.examine, held_out)
            except UserError as error:
                message = str(error).removeprefix("examine: ")
                raise UserError(f"stages.{stage.name}.examine: {message}") from error
    return measures


def _measures(examine: Examine, held_out: Callable[[int | None], list[Document]]) -> list[Figures]:
    measures: list[Figures] = []
    if examine.metrics:
        sources = {
            name: HeldOut(open_source(declaration), "fail").documents(examine.questions)
            for name, declaration in examine.sources.items()
        }
        recipe_documents = held_out(examine.questions)
        if recipe_documents or not sources:
            sources = {HELD_OUT: recipe_documents, **sources}
        measures += [DocumentFigures(name, documents, examine.metrics) for name, documents in sources.items()]
    for text in examine.benchmarks:
        name, _, split = text.partition(":")
        benchmark = load_benchmark(name)
        split = benchmark.split(split)
        questions = benchmark.reader_of(split).questions(Path(examine.data or ""), examine.questions)
        measures.append(BenchmarkFigures(benchmark, split, questions))
    return measures
