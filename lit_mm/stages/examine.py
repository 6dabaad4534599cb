"""Figures that a stage measures while it trains, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lit_mm.errors import UserError

HELD_OUT = "held_out"  # name of the recipe's held-out documents among the sources
LOSS = "loss"  # the metric that is no score of answers


@dataclass
class Examine:
    """Figures to measure at the times of the examinations, beside the accuracy on the recipe's held-out documents.

    A figure is called METRIC/SOURCE, METRIC/SOURCE/SKILL, or benchmark/NAME:SPLIT. Figures of metrics are fractions,
    those of benchmarks have the unit of papers, and a loss is the mean over supervised tokens.

    Args:
        metrics: names of metrics, or "loss", measured on the recipe's held-out documents and on `sources`.
        sources: name -> declaration of held-out documents, such as {format: llava, path: asked.json}.
        benchmarks: benchmarks, "NAME" or "NAME:SPLIT"; a NAME that ends in .yaml is a file, see docs/benchmarks.md.
        data: folder of all benchmarks.
        questions: number of documents of a source and of questions of a benchmark; None for all of a benchmark or
            source, and for `examine_documents` of the recipe's held-out documents.
        best: figure by which the best checkpoint stays, the lowest for a loss and the highest otherwise; "" for the
            accuracy. All stages that name one name the same.
    Raises:
        UserError: nothing is measured, or a key that another one needs is missing.
    """

    metrics: list[str] = field(default_factory=list)
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    benchmarks: list[str] = field(default_factory=list)
    data: str | None = None
    questions: int | None = None
    best: str = ""

    def __post_init__(self) -> None:
        if not self.metrics and not self.benchmarks:
            raise UserError("examine: name `metrics`, such as [loss], or `benchmarks`")
        if self.sources and not self.metrics:
            raise UserError(f"examine: the sources {sorted(self.sources)} need `metrics`, such as [loss]")
        if HELD_OUT in self.sources:
            raise UserError(
                f"examine.sources: the name {HELD_OUT!r} is reserved for the held-out documents of the recipe"
            )
        if self.benchmarks and self.data is None:
            raise UserError("examine.benchmarks: set `examine.data` to the folder of the benchmarks")
        if self.questions is not None and self.questions < 1:
            raise UserError(f"examine.questions is at least 1, got {self.questions}")
