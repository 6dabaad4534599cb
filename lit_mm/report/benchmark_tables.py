"""Tables of benchmark figures for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich import box
from rich.table import Table

from lit_mm.evaluation.benchmarks.benchmark import Benchmark, Procedure, Published
from lit_mm.evaluation.measurement import Contrast, Measurement, difference_to
from lit_mm.report.tables import rendered

WIDTH = 132  # columns of a table


@dataclass(frozen=True)
class Line:
    """A model on a split of a benchmark.

    Attributes:
        model: name of the model in the table.
        benchmark: benchmark.
        split: name of the split.
        procedure: procedure.
        measurement: figure; None if the answers are not public.
        blind: figure with the pictures of other questions; None if it was not measured.
        published: published figures of the model's family.
        submission: path of the file for the server, "" for none.
        folder: folder of the answers.
    """

    model: str
    benchmark: Benchmark
    split: str
    procedure: Procedure
    measurement: Measurement | None
    blind: Measurement | None = None
    published: Sequence[Published] = field(default_factory=tuple)
    submission: str = ""
    folder: str = ""

    @property
    def name(self) -> str:
        return f"{self.benchmark.name}:{self.split}"


def benchmark_table(lines: Sequence[Line]) -> str:
    """Format figures with their 95 % intervals beside the published ones.

    A figure that was read in a public file, for the same split and metric, gets the difference to it. All others stand
    in brackets with their mark: r is recalled, s secondary; v belongs to another split or metric. The mark of the
    prompt stands beside the procedure, see `lit_mm.evaluation.benchmarks.benchmark.Procedure`.
    """
    table = Table(box=box.SIMPLE_HEAVY, pad_edge=False)
    for name in ("model", "benchmark", "procedure", "metric"):
        table.add_column(name, overflow="fold")
    for name in ("figure", "95 % interval", "blind", "n"):
        table.add_column(name, justify="right")
    table.add_column("published", overflow="fold")
    for line in lines:
        result = line.measurement
        figures = (
            ["pending", "-", "-", "-"]
            if result is None
            else [
                f"{result.figure:.1f}",
                f"{result.interval.low:.1f} to {result.interval.high:.1f}",
                "-" if line.blind is None else f"{line.blind.figure:.1f}",
                str(result.count),
            ]
        )
        metric = "submission" if result is None else result.metric
        published = "\n".join(published_text(entry, line) for entry in line.published) or "-"
        mark = line.procedure.prompt_mark
        procedure = line.procedure.name + (f", prompt {mark}" if mark and mark != line.procedure.name else "")
        table.add_row(line.model, line.name, procedure, metric, *figures, published)
    notes = [f"{line.name}: {line.benchmark.note}" for line in lines if line.benchmark.note]
    notes += [f"{line.name}: {line.measurement.note}" for line in lines if line.measurement and line.measurement.note]
    notes += [f"{line.name}: the server takes {line.submission}" for line in lines if line.submission]
    return "\n".join([rendered(table, WIDTH), *dict.fromkeys(notes)])


def published_text(entry: Published, line: Line) -> str:
    """Format a published figure, with the difference to it or in brackets."""
    difference = None
    if line.measurement is not None:
        difference = difference_to(line.measurement, entry, line.split, line.benchmark.scale)
    if difference is not None:
        return f"{entry.model} {entry.figure:g} ({difference:+.1f})"
    others = "".join(
        f", {name} {value}"
        for name, value, mine in (
            ("split", entry.split, line.split),
            ("metric", entry.metric, line.measurement.metric if line.measurement else entry.metric),
        )
        if value != mine
    )
    return f"[{entry.model} {entry.figure:g} {entry.mark}{others}]"


def contrast_table(contrasts: Sequence[Contrast]) -> str:
    """Format comparisons of models: differences of the mean scores in points of 100, with p values."""
    table = Table(box=box.SIMPLE_HEAVY, pad_edge=False)
    table.add_column("comparison", overflow="fold")
    for name in ("difference", "95 % interval", "test", "p", "p by Holm", "questions for 80 % power"):
        table.add_column(name, justify="right")
    for contrast in contrasts:
        comparison = contrast.comparison
        table.add_row(
            contrast.benchmark,
            f"{100 * comparison.difference:+.1f}",
            f"{100 * comparison.interval.low:+.1f} to {100 * comparison.interval.high:+.1f}",
            contrast.test,
            f"{comparison.p_value:.3g}",
            f"{contrast.adjusted:.3g}",
            "-" if contrast.needed is None else str(contrast.needed),
        )
    return rendered(table, WIDTH)
