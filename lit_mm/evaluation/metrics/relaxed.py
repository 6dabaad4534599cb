"""Relaxed accuracy of charts: numbers may be 5 % off (ChartQA)."""

from __future__ import annotations

from collections.abc import Sequence

from lit_mm.evaluation.metrics.rows import Row, Scored, mean_of

TOLERANCE = 0.05


def relaxed_accuracy(rows: Sequence[Row]) -> Scored:
    """Compute the share of answers within 5 % of a reference.

    Source: pix2struct; lmms-eval lmms_eval/tasks/chartqa/utils.py.
    """
    return mean_of([float(any(is_close(row.prediction, gold) for gold in row.references)) for row in rows])


def relaxed_accuracy_qwen_vl(rows: Sequence[Row]) -> Scored:
    """Compute the share of answers that have a reference within 5 % of the answer, as the reference code does.

    It swaps the two arguments of `relaxed_accuracy`: the tolerance is 5 % of the answer, not of the reference. White
    space around the answer is dropped.
    Source: Qwen-VL eval_mm/evaluate_vqa.py and Monkey eval/evaluate_vqa.py, `evaluate_relaxed_accuracy`.
    """
    return mean_of([float(any(is_close(gold, row.prediction.strip()) for gold in row.references)) for row in rows])


def is_close(answer: str, target: str) -> bool:
    """Return True if numbers differ by at most 5 % of `target`; texts, and a target of 0, must be equal up to case.

    "95" is close to "100", "5%" to "0.05"; "2,000" is no number, and "0.0" is not close to "0".
    """
    value, goal = _number(answer), _number(target)
    if value is not None and goal:
        return abs(value - goal) / abs(goal) <= TOLERANCE
    return answer.lower() == target.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
