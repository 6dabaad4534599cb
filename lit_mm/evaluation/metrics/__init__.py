"""Metrics of benchmarks: pure functions of rows, each in the form of the code that published figures come from."""

from lit_mm.evaluation.metrics.registry import METRICS, Metric, find_metric, score_rows
from lit_mm.evaluation.metrics.rows import Row, Scored, resample

__all__ = ["METRICS", "Metric", "Row", "Scored", "find_metric", "resample", "score_rows"]
