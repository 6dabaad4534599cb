"""This module prints accuracies as tables for the terminal."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from lit_mm.evaluation.score import Prediction, Score
from lit_mm.evaluation.statistics import Interval

if TYPE_CHECKING:
    from rich.table import Table


def accuracy_table(score: Score, blind: Score, predictions: Iterable[Prediction] = ()) -> str:
    """Format the accuracy of every skill beside the blind baseline, in percent.

    Args:
        score: accuracies on held-out documents.
        blind: accuracies with the images of other documents.
        predictions: scored predictions, from which documents per skill are counted. If empty, only the total is shown.
    """
    from rich import box
    from rich.table import Table

    counts: dict[str, int] = {}
    for prediction in predictions:
        counts[prediction.document.skill] = counts.get(prediction.document.skill, 0) + 1
    table = Table(box=box.SIMPLE_HEAVY, show_footer=bool(score.skills), pad_edge=False)
    table.add_column("skill", footer="overall")
    table.add_column("accuracy", footer=_percent(score.overall), justify="right")
    table.add_column("blind", footer=_percent(blind.overall), justify="right")
    table.add_column("n", footer=str(score.count), justify="right")
    for skill, share in score.skills.items():
        table.add_row(skill, _percent(share), _percent(blind.skills.get(skill)), str(counts.get(skill, "")))
    if not score.skills:
        table.add_row("overall", _percent(score.overall), _percent(blind.overall), str(score.count))
    return rendered(table, 100)


class RunLine(NamedTuple):
    """A run in the table of several runs; figures are percentages.

    Attributes:
        name: name of the run.
        family: class of its model.
        measure: what the figure is, such as "exact match".
        figure: figure over all questions.
        interval: 95 % interval of the figure.
        blind: figure with the images of other documents.
        count: number of questions.
    """

    name: str
    family: str
    measure: str
    figure: float
    interval: Interval
    blind: float
    count: int


def run_table(lines: Sequence[RunLine]) -> str:
    """Format the figures of several runs with 95 % intervals beside the blind baselines, in percent."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAVY, pad_edge=False)
    for column in ("model", "family", "measure"):
        table.add_column(column, overflow="fold")
    for column in ("figure", "95 % interval", "blind", "n"):
        table.add_column(column, justify="right")
    for line in lines:
        interval = f"{line.interval.low:.1f} to {line.interval.high:.1f}"
        numbers = (f"{line.figure:.1f}", interval, f"{line.blind:.1f}", str(line.count))
        table.add_row(line.name, line.family, line.measure, *numbers)
    return rendered(table, 132)


def rendered(table: Table, width: int) -> str:
    """Render a table as plain text, in which names such as "stvqa:monkey:" and "[a]" stay as they are."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, markup=False, emoji=False)
    console.print(table)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()).strip("\n")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
