"""This module draws sweep.png: the trials of a sweep as parallel coordinates, and the importance of parameters."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_mm.report.colours import FAINT, GREY, INK, PALETTE
from lit_mm.run.files import write_whole

if TYPE_CHECKING:  # importing matplotlib takes a second
    from matplotlib.axes import Axes

SPREAD = 20  # ratio of the largest to the smallest value from which an axis is logarithmic
MOST_TICKS = 12  # listed values of an axis with a label each


def draw_sweep(
    points: Sequence[Mapping[str, Any]],
    values: Sequence[float],
    metric: str,
    goal: str,
    importances: Mapping[str, float],
    path: str | Path,
) -> None:
    """Draw one line per trial through an axis per parameter and an axis of the metric, coloured by the metric.

    Parameters with one value in all trials get no axis. The best trial is drawn last, with a wider line.

    Args:
        points: address -> value of every trial that has a figure.
        values: figure of every trial.
        metric: name of the figure.
        goal: "minimize" or "maximize".
        importances: address -> share of the importance, the largest first; {} draws no bars.
        path: path of the PNG.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    columns = {
        address: [point.get(address) for point in points] for address in dict.fromkeys(k for p in points for k in p)
    }
    columns = {address: column for address, column in columns.items() if len({repr(value) for value in column}) > 1}
    columns[metric] = list(values)
    width = max(8.0, 2.1 * len(columns))
    figure = Figure(
        figsize=(width + (4.5 if importances else 0), 5.6), dpi=130, layout="constrained", facecolor="white"
    )
    panels = figure.subplots(
        1, 2 if importances else 1, squeeze=False, width_ratios=[width, 3.6] if importances else None
    )
    lines = panels[0][0]
    scales = [_scale(column) for column in columns.values()]
    order = sorted(range(len(values)), key=values.__getitem__, reverse=goal == "minimize")  # the best line on top
    low, high = min(values, default=0.0), max(values, default=1.0)
    for rank, trial in enumerate(order):
        share = 0.5 if high == low else (values[trial] - low) / (high - low)
        share = 1 - share if goal == "minimize" else share
        heights = [heights[trial] for heights, _ in scales]
        is_best = rank == len(order) - 1
        lines.plot(
            range(len(columns)),
            heights,
            color=colormaps["viridis"](0.92 * share),
            linewidth=2.8 if is_best else 1.3,
            alpha=1.0 if is_best else 0.8,
        )
    _draw_axes(lines, list(columns), [ticks for _, ticks in scales])
    lines.set_title(f"{len(values)} trials; lighter is better, the wide line is the best", color=GREY, fontsize=10)
    if importances:
        _draw_bars(panels[0][1], importances)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_whole(path, buffer.getvalue())


def _scale(column: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Return the height of every value, 0 to 1, and the (height, label) of ticks.

    Numbers have a linear or, over a large ratio, a logarithmic axis. Other values stand at equal distances.
    """
    if all(isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in column):
        low, high = min(column), max(column)
        if low == high:
            return [0.5] * len(column), [(0.5, f"{low:.4g}")]
        is_log = low > 0 and high / low >= SPREAD

        def place(value: float) -> float:
            if is_log:
                return math.log(value / low) / math.log(high / low)
            return (value - low) / (high - low)

        distinct = sorted(set(column))
        marks = distinct
        if len(distinct) > MOST_TICKS:
            steps = [number / 5 for number in range(6)]
            marks = [low * (high / low) ** step if is_log else low + step * (high - low) for step in steps]
        return [place(value) for value in column], _apart([(place(mark), f"{mark:.4g}") for mark in marks])
    labels = list(dict.fromkeys(str(value) for value in column))
    heights = {label: 0.5 if len(labels) == 1 else number / (len(labels) - 1) for number, label in enumerate(labels)}
    ticks = [(heights[label], label if len(label) <= 24 else f"{label[:21]}...") for label in labels]
    return [heights[str(value)] for value in column], ticks


def _apart(ticks: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """Leave out ticks whose labels would overlap. The first and the last tick stay."""
    apart = ticks[:1]
    for tick in ticks[1:-1]:
        if tick[0] - apart[-1][0] > 0.05 and ticks[-1][0] - tick[0] > 0.05:
            apart.append(tick)
    return apart + ticks[-1:] if len(ticks) > 1 else apart


def _draw_axes(axes: Axes, names: Sequence[str], ticks: Sequence[Sequence[tuple[float, str]]]) -> None:
    """Draw a vertical line with ticks for every column."""
    for number, marks in enumerate(ticks):
        axes.axvline(number, color=GREY, linewidth=1, zorder=0)
        for height, label in marks:
            axes.plot([number - 0.02, number], [height, height], color=GREY, linewidth=1)
            axes.text(
                number - 0.04,
                height,
                label,
                ha="right",
                va="center",
                fontsize=8,
                color=INK,
                parse_math=False,
                zorder=6,
                bbox={"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 1},
            )
    axes.set_xticks(range(len(names)), [_broken(name) for name in names], fontsize=8, parse_math=False)
    axes.set_yticks([])
    axes.set_xlim(-0.6, len(names) - 0.85)
    axes.set_ylim(-0.04, 1.04)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw_bars(axes: Axes, importances: Mapping[str, float]) -> None:
    names = list(importances)
    axes.barh(range(len(names)), [importances[name] for name in names], color=PALETTE[0], height=0.4)
    axes.set_yticks(range(len(names)), [_broken(name) for name in names], fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_title("importance (PED-ANOVA)", color=GREY, fontsize=10)
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=INK, labelsize=8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _broken(address: str) -> str:
    """Break an address into lines of at most 22 letters, at its dots."""
    lines = [""]
    for number, name in enumerate(address.split(".")):
        word = name if not number else f".{name}"
        if lines[-1] and len(lines[-1]) + len(word) > 22:
            lines.append("")
        lines[-1] += word
    return "\n".join(lines)
