"""The figures of a run folder, by the names that they have in W&B. No torch is imported before a table is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_mm.errors import UserError, nearest

if TYPE_CHECKING:
    from lit_mm.commands.recipe import RecipeCLI
    from lit_mm.evaluation.statistics import Interval

SUMMARY = ("accuracy", "blind")  # shares of right answers in summary.json
COLUMNS = ("loss", "tokens")  # columns of metrics.csv that W&B has under the same name


def figure_of(folder: Path, name: str) -> float | None:
    """Return the last value of a figure of a run; None if the run has not measured it.

    Args:
        folder: run folder.
        name: name of the figure in W&B, such as accuracy, accuracy/overall, loss, loss/held_out or lr/connector.
    Raises:
        UserError: a table of the run is damaged.
    """
    from lit_mm.callbacks.examination import read_accuracy
    from lit_mm.callbacks.figures import TYPES
    from lit_mm.callbacks.metrics_csv import read_metrics
    from lit_mm.callbacks.step_table import read_rows

    if name in (*SUMMARY, "seconds"):
        summary = read_summary(folder)
        if name not in summary:
            return None
        return float(summary[name]["overall"] if name in SUMMARY else summary[name])
    kind, _, rest = name.partition("/")
    if kind == "accuracy" and rest:
        rows = read_accuracy(folder / "accuracy.csv")
        if rows and rest in rows[-1]:
            return rows[-1][rest]
    measured = [row["value"] for row in read_rows(folder / "figures.csv", TYPES) if row["figure"] == name]
    if measured:
        return measured[-1]
    rows = read_metrics(folder / "metrics.csv")
    column = f"lr_{rest}" if kind == "lr" else name
    return float(rows[-1][column]) if rows and column in rows[-1] else None


def interval_of(folder: Path, name: str) -> Interval | None:
    """Return the 95 % interval of a share of right answers; None for any other figure.

    Args:
        folder: run folder.
        name: name of the figure.
    """
    from lit_mm.evaluation.statistics import wilson_interval

    summary = read_summary(folder)
    if name not in SUMMARY or name not in summary or not summary.get("documents"):
        return None
    return wilson_interval(float(summary[name]["overall"]), int(summary["documents"]))


def read_summary(folder: Path) -> Mapping[str, Any]:
    """Read summary.json; {} before the end of a run.

    Raises:
        UserError: the file is damaged.
    """
    file = folder / "summary.json"
    try:
        summary = json.loads(file.read_bytes())
        if isinstance(summary, dict) and all("overall" in summary[name] for name in SUMMARY if name in summary):
            return summary
        problem = "it is no summary of a run"
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        problem = str(error)
    raise UserError(f"{str(file)!r} is damaged ({problem}). Remove it, and repeat the command of the run")


def check_figure(cli: RecipeCLI, name: str) -> None:
    """Check that a run of a recipe measures a figure.

    Args:
        cli: the recipe with its model.
        name: name of the figure in W&B.
    Raises:
        UserError: no run of the recipe measures it, or the held-out documents cannot be read.
    """
    from lit_mm.commands.examined import measures_of
    from lit_mm.documents.examination import skills_of
    from lit_mm.evaluation.examiners import NamedFigures

    names = [*COLUMNS, *(f"lr/{part}" for part in cli.model.base_parts())]
    if len(cli.model.objectives) > 1:
        names += [f"loss/{objective}" for objective in cli.model.objectives]
    if name in names:
        return
    documents = cli.datamodule.heldout(cli.config.examine_documents)
    if documents:
        skills = skills_of(documents)
        if isinstance(cli.model.examiner, NamedFigures):
            skills = list(cli.model.examiner.skills)
        names += [*SUMMARY, "seconds", "accuracy/overall", *(f"accuracy/{skill}" for skill in skills)]
    measures = measures_of(cli.stages, lambda count: cli.datamodule.heldout(count or cli.config.examine_documents))
    names += [figure for each in measures.values() for measure in each for figure in measure.names(cli.model)]
    if name not in names:
        guess = nearest(name, names)
        raise UserError(f"metric.name: a run does not measure {name!r}{guess or '. It measures ' + ', '.join(names)}")
