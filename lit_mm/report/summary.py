"""This module writes summary.json: accuracies, times and the figures of each stage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_mm.evaluation.score import Score
from lit_mm.report.files import write_whole


def write_summary(
    path: str | Path,
    *,
    accuracy: Score,
    blind: Score,
    seconds: float,
    seconds_to_first_step: float | None,
    peak_memory_mb: float,
    stages: Sequence[Mapping[str, Any]],
    **more: Any,
) -> dict[str, Any]:
    """Write summary.json atomically and return its content.

    Args:
        path: path of the file.
        accuracy: accuracies on held-out documents.
        blind: accuracies with the images of other documents.
        seconds: wall time from launch to the end of the run.
        seconds_to_first_step: wall time from launch to the end of the first optimizer step; None without a step.
        peak_memory_mb: peak memory of the process, MB.
        stages: one entry per stage, see `stage_summaries`.
        more: further entries of JSON types.
    """
    summary = {
        "accuracy": {"overall": accuracy.overall, "skills": dict(accuracy.skills)},
        "blind": {"overall": blind.overall, "skills": dict(blind.skills)},
        "seconds": seconds,
        "seconds_to_first_step": seconds_to_first_step,
        "peak_memory_mb": peak_memory_mb,
        "stages": [dict(stage) for stage in stages],
        **more,
    }
    write_whole(path, (json.dumps(summary, indent=2) + "\n").encode())
    return summary


def stage_summaries(
    metrics_rows: Sequence[Mapping[str, Any]],
    branches: Mapping[str, str] | None = None,
    ends: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Summarise each stage: name, optimizer steps, useful tokens, wall seconds, losses of the first and last step.

    Args:
        metrics_rows: rows of metrics.csv.
        branches: branch -> the stage at whose end it starts, for stages that do not continue the stage before them;
            None for no branch. Entries of branches have it as `starts_from`.
        ends: stage that a callback ended early -> its `step`, the `planned` steps and the `reason`; an entry of such a
            stage has it as `stopped`.
    """
    branches, ends = branches or {}, ends or {}
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for row in metrics_rows:
        stages.setdefault(row["stage"], []).append(row)
    summaries, before = [], 0.0
    for name, rows in stages.items():
        summaries.append(
            {
                "name": name,
                **({"starts_from": branches[name]} if name in branches else {}),
                "steps": len(rows),
                **({"stopped": stopped(ends[name])} if name in ends else {}),
                "tokens": sum(row["tokens"] for row in rows),
                "seconds": round(rows[-1]["seconds"] - before, 3),
                "first_loss": rows[0]["loss"],
                "last_loss": rows[-1]["loss"],
            }
        )
        before = rows[-1]["seconds"]
    return summaries


def stopped(end: Mapping[str, Any]) -> str:
    """An early end of a stage in words: stopped at step 3 of 10, and why."""
    return f"stopped at step {end['step']} of {end['planned']}: {end['reason']}"
