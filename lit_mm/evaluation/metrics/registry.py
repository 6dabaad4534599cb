"""The table of metrics by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lit_mm.errors import UserError
from lit_mm.evaluation.metrics.anls import anls, anls_monkey
from lit_mm.evaluation.metrics.caption_tokens import find_tokenizer
from lit_mm.evaluation.metrics.captions import bleu4, cider
from lit_mm.evaluation.metrics.choice import letter_accuracy, mmbench_circular, scienceqa_accuracy
from lit_mm.evaluation.metrics.due import due_f1
from lit_mm.evaluation.metrics.equality import (
    containment,
    equality,
    gqa_accuracy,
    gqa_accuracy_qwen_vl,
    gqa_containment,
)
from lit_mm.evaluation.metrics.grounding import grounding_accuracy
from lit_mm.evaluation.metrics.relaxed import relaxed_accuracy, relaxed_accuracy_qwen_vl
from lit_mm.evaluation.metrics.retrieval import recall
from lit_mm.evaluation.metrics.roc import roc_auc
from lit_mm.evaluation.metrics.rows import Function, Row, Scored, check_rows
from lit_mm.evaluation.metrics.vqa import textvqa_accuracy, vqa_accuracy
from lit_mm.evaluation.metrics.wtq import wtq_accuracy
from lit_mm.evaluation.metrics.yes_no import mme, pope_accuracy, pope_f1


@dataclass(frozen=True)
class Metric:
    """A metric function and the statistics that apply to it.

    Attributes:
        function: rows -> `Scored`.
        is_mean: True if the figure is the mean of the scores, so that intervals can be computed from the scores alone.
        is_binary: True if each score is right or wrong, so that McNemar's test applies.
        check: function that raises a UserError if a package of the metric is missing; None if it needs none.
    """

    function: Function
    is_mean: bool = True
    is_binary: bool = True
    check: Callable[[], object] | None = None


METRICS = {
    "vqa_accuracy": Metric(vqa_accuracy, is_binary=False),
    "textvqa_accuracy": Metric(textvqa_accuracy, is_binary=False),
    "anls": Metric(anls, is_binary=False),
    "anls_monkey": Metric(anls_monkey, is_binary=False),
    "relaxed_accuracy": Metric(relaxed_accuracy),
    "relaxed_accuracy_qwen_vl": Metric(relaxed_accuracy_qwen_vl),
    "equality": Metric(equality),
    "containment": Metric(containment),
    "gqa_accuracy": Metric(gqa_accuracy),
    "gqa_accuracy_qwen_vl": Metric(gqa_accuracy_qwen_vl),
    "gqa_containment": Metric(gqa_containment),
    "scienceqa_accuracy": Metric(scienceqa_accuracy),
    "letter_accuracy": Metric(letter_accuracy),
    "mmbench_circular": Metric(mmbench_circular),
    "pope_f1": Metric(pope_f1, is_mean=False),
    "pope_accuracy": Metric(pope_accuracy),
    "mme": Metric(mme, is_mean=False),
    "cider": Metric(cider, is_binary=False, check=find_tokenizer),
    "bleu4": Metric(bleu4, is_mean=False, is_binary=False, check=find_tokenizer),
    "grounding_accuracy": Metric(grounding_accuracy),
    "recall": Metric(recall),
    "due_f1": Metric(due_f1, is_mean=False, is_binary=False),
    "wtq_accuracy": Metric(wtq_accuracy),
    "roc_auc": Metric(roc_auc, is_mean=False, is_binary=False),
}


def find_metric(name: str) -> Metric:
    """Look up a metric by its name.

    Raises:
        UserError: no metric has this name.
    """
    if name not in METRICS:
        raise UserError(f"unknown metric {name!r}; there are {', '.join(sorted(METRICS))}")
    return METRICS[name]


def check_metric(name: str) -> None:
    """Refuse a metric that cannot be computed here, before the questions are asked.

    Raises:
        UserError: no metric has this name, or one of its packages is missing.
    """
    if (check := find_metric(name).check) is not None:
        check()


def score_rows(name: str, rows: Sequence[Row]) -> Scored:
    """Score rows with the metric called `name`.

    Raises:
        UserError: no metric has this name, or the rows cannot be scored.
    """
    check_rows(rows)
    return find_metric(name).function(rows)
