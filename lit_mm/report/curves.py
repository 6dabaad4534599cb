"""This module draws curves.png: loss, learning rates and held-out accuracy over optimizer steps."""

from __future__ import annotations

import io
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_mm.evaluation.score import Score
from lit_mm.report.colours import FAINT, GREY, INK, MORE, PALETTE
from lit_mm.run.files import write_whole

if TYPE_CHECKING:  # importing matplotlib takes a second
    from matplotlib.axes import Axes


def draw_curves(
    metrics_rows: Sequence[Mapping[str, Any]],
    accuracy_rows: Sequence[Mapping[str, Any]],
    blind: Score | None,
    path: str | Path,
    branches: Mapping[str, str] | None = None,
) -> None:
    """Draw loss, learning rate per part and held-out accuracy over optimizer steps, with stage names at the top.

    Args:
        metrics_rows: rows of metrics.csv with step, stage, loss, and `lr_<part>` for every part.
        accuracy_rows: rows of accuracy.csv with step, stage, overall, and one share per skill; may be empty.
        blind: accuracy with the images of other documents, drawn as a dashed line; None draws no line.
        path: path of the PNG.
        branches: branch -> the stage at whose end it starts, for stages that do not continue the stage before them;
            None for no branch. Every branch gets a separate line of accuracy.
    """
    branches = branches or {}
    from matplotlib.figure import Figure  # imported late, because it takes a second

    steps = [row["step"] for row in metrics_rows]
    figure = Figure(figsize=(10, 10.5), dpi=130, layout="constrained", facecolor="white")
    loss, rate, accuracy = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 3.4))

    values = [row["loss"] for row in metrics_rows]
    loss.plot(steps, values, color=PALETTE[0], alpha=0.3, linewidth=0.9)
    for first, last in _spans(metrics_rows).values():
        span = slice(bisect_left(steps, first), bisect_right(steps, last))
        loss.plot(steps[span], smooth(values[span], len(values) // 60), color=PALETTE[0], linewidth=2)
    loss.set_ylabel("loss (nats per token)")
    if values and min(values) > 0 and max(values) / min(values) > 20:
        loss.set_yscale("log")

    parts = [column for column in (metrics_rows[0] if metrics_rows else {}) if column.startswith("lr_")]
    for part, color in zip(parts, colours(len(parts)), strict=True):
        rates = [row[part] or float("nan") for row in metrics_rows]  # a rate of 0 is a frozen part and gets no line
        if any(r == r for r in rates):
            rate.plot(steps, rates, color=color, linewidth=1.8, label=part.removeprefix("lr_"))
    peak = max((row[part] for row in metrics_rows for part in parts if row[part] == row[part]), default=0.0)
    if peak:
        rate.set_yscale("log")
        rate.set_ylim(peak / 3e3, peak * 2)  # a cosine ends at 0, which a logarithmic axis cannot show
    rate.set_ylabel("learning rate")

    columns = list(accuracy_rows[0]) if accuracy_rows else []
    skills = [column for column in columns if column not in ("step", "stage", "overall")]
    at = [row["step"] for row in accuracy_rows]
    overall = _broken([100 * row["overall"] for row in accuracy_rows], accuracy_rows, branches)
    at = _broken(at, accuracy_rows, branches)
    accuracy.plot(at, overall, color=INK, linewidth=2.8, marker="o", markersize=4.5, label="overall", zorder=5)
    if blind is not None:
        accuracy.axhline(100 * blind.overall, color=INK, linewidth=1.4, linestyle=(0, (5, 4)), label="overall, blind")
    for skill, color in zip(skills, colours(len(skills)), strict=True):
        line = _broken([100 * row[skill] for row in accuracy_rows], accuracy_rows, branches)
        accuracy.plot(at, line, color=color, linewidth=1.1, marker="o", markersize=2.5, alpha=0.85, label=skill)
    accuracy.set_ylim(-3, 103)
    accuracy.set_ylabel("held-out accuracy (%)")
    accuracy.set_xlabel("optimizer steps, through all stages")

    for axes in (loss, rate, accuracy):
        _tidy(axes)
        if axes is not loss and axes.get_legend_handles_labels()[0]:
            axes.legend(loc="center left", bbox_to_anchor=(1.005, 0.5), frameon=False, fontsize=9, handlelength=1.6)
    _mark_stages((loss, rate, accuracy), metrics_rows, branches)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_whole(path, buffer.getvalue())


def smooth(values: Sequence[float], reach: int) -> list[float]:
    """Average over `reach` steps on either side, fewer at the ends. The window is centred, so jumps do not move."""
    sums = [0.0, *accumulate(values)]
    windows = [(max(0, i - reach), min(len(values), i + reach + 1)) for i in range(len(values))]
    return [(sums[stop] - sums[start]) / (stop - start) for start, stop in windows]


def _broken(values: Sequence[float], rows: Sequence[Mapping[str, Any]], branches: Mapping[str, str]) -> list[float]:
    """Insert NaN before the first row of every branch, where a line must end."""
    line: list[float] = []
    for number, (value, row) in enumerate(zip(values, rows, strict=True)):
        if number and row["stage"] in branches and rows[number - 1]["stage"] != row["stage"]:
            line.append(float("nan"))
        line.append(value)
    return line


def _spans(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Return stage -> [first step, last step]."""
    spans: dict[str, list[int]] = {}
    for row in rows:
        spans.setdefault(row["stage"], [row["step"], row["step"]])[1] = row["step"]
    return spans


def colours(count: int) -> list[str]:
    """Pick `count` colours: the palettes, whose first six are the clearest, up to twelve; above, a continuous map."""
    if count <= len(PALETTE + MORE):
        return list((PALETTE + MORE)[:count])
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["turbo"](0.04 + 0.92 * i / (count - 1))) for i in range(count)]


def _tidy(axes: Axes) -> None:
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.01)
    axes.tick_params(colors=GREY, labelsize=9)
    axes.tick_params(which="minor", length=0)
    axes.yaxis.label.set_color(INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#bbbbbb")


def _mark_stages(panels: Sequence[Axes], rows: Sequence[Mapping[str, Any]], branches: Mapping[str, str]) -> None:
    """Draw a line between stages in every panel, and the name of each stage above the first panel.

    Below the name of a branch stands the stage at whose end it starts.
    """
    for number, (name, (first, last)) in enumerate(_spans(rows).items()):
        if number:
            for axes in panels:
                axes.axvline(first - 0.5, color=GREY, linewidth=1, linestyle=(0, (2, 2)))
        panels[0].annotate(
            f"{name}\nfrom {branches[name]}" if name in branches else name,
            ((first + last) / 2, 1.02),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="bottom",
            fontsize=11,
            fontweight="bold",
            color=INK,
            parse_math=False,
        )
