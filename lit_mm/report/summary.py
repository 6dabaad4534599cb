"""This module writes summary.json: accuracies, times and the figures of each stage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_mm.evaluation.score import Score
from lit_mm.run.files import write_whole


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
        seconds: wall time of the run over all its launches.
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
    write_whole(path, json.dumps(summary, indent=2) + "\n")
    return summary


def stage_summaries(
    metrics_rows: Sequence[Mapping[str, Any]],
    branches: Mapping[str, str] | None = None,
    ends: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Summarise each stage: name, optimizer steps, useful tokens, wall seconds, first and last loss, throughput.

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
                **({"throughput": throughput_of(rows)} if "step_seconds" in rows[0] else {}),
            }
        )
        before = rows[-1]["seconds"]
    return summaries


def throughput_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Summarise the throughput of a stage, without its first step, which fills caches and compiles.

    Args:
        rows: rows of metrics.csv of the stage, with the figures of `lit_mm.callbacks.throughput.Throughput`.
    Returns:
        Useful tokens, visual tokens, images and samples per second, `waste`, imbalance, share of the time that waits
        for data, `mfu` (None for devices without a known peak), and peak memory, MiB.
    """
    warm = [row for row in rows[1:] or rows if row["step_seconds"] == row["step_seconds"]]  # without NaN
    seconds = sum(row["step_seconds"] for row in warm)
    if not seconds:
        return {}
    summary: dict[str, float | None] = {
        f"{label}_per_second": sum(row[name] for row in warm) / seconds
        for label, name in (
            ("tokens", "tokens"),
            ("visual_tokens", "visual_tokens"),
            ("images", "images"),
            ("samples", "num_samples"),
        )
    }
    for name in ("waste", "token_imbalance", "view_imbalance"):
        summary[name] = sum(row[name] for row in warm) / len(warm)
    mfu = sum(row["mfu"] * row["step_seconds"] for row in warm) / seconds
    summary["data_wait"] = sum(row["data_wait"] for row in warm) / seconds
    summary["mfu"] = mfu if mfu == mfu else None
    summary["peak_memory_mb"] = max(row["peak_memory_mb"] for row in rows)
    return {name: value if value is None else float(f"{value:.6g}") for name, value in summary.items()}


def stopped(end: Mapping[str, Any]) -> str:
    """Describe an early end of a stage: "stopped at step 3 of 10", and why."""
    return f"stopped at step {end['step']} of {end['planned']}: {end['reason']}"
