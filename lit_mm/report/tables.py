"""This module prints accuracies as a table for the terminal."""

from __future__ import annotations

import io
from collections.abc import Iterable

from lit_mm.evaluation.score import Prediction, Score


def accuracy_table(score: Score, blind: Score, predictions: Iterable[Prediction] = ()) -> str:
    """Format the accuracy of every skill beside the blind baseline, in percent.

    Args:
        score: accuracies on held-out documents.
        blind: accuracies with the images of other documents.
        predictions: scored predictions, from which documents per skill are counted. If empty, only the total is shown.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    counts: dict[str, int] = {}
    for prediction in predictions:
        counts[prediction.document.skill] = counts.get(prediction.document.skill, 0) + 1
    table = Table(box=box.SIMPLE_HEAVY, show_footer=True, pad_edge=False)
    table.add_column("skill", footer="overall")
    table.add_column("accuracy", footer=_percent(score.overall), justify="right")
    table.add_column("blind", footer=_percent(blind.overall), justify="right")
    table.add_column("n", footer=str(score.count), justify="right")
    for skill, share in score.skills.items():
        table.add_row(skill, _percent(share), _percent(blind.skills.get(skill)), str(counts.get(skill, "")))
    console = Console(file=io.StringIO(), width=100)
    console.print(table)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()).strip("\n")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
