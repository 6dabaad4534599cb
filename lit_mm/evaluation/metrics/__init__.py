"""Metrics of benchmarks. Each is a pure function of rows that follows the code behind published figures."""

from lit_mm.evaluation.metrics.registry import METRICS, Metric, check_metric, find_metric, score_rows
from lit_mm.evaluation.metrics.rows import Row, Scored, resample

__all__ = ["METRICS", "Metric", "Row", "Scored", "check_metric", "find_metric", "resample", "score_rows"]
