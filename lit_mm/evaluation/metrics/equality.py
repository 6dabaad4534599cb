"""Equality and containment of short answers (AI2D, OCR-VQA, GQA and others)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lit_mm.evaluation.metrics.rows import Row, Scored, mean_of


def equality(rows: Sequence[Row]) -> Scored:
    """Compute the share of answers equal to a reference, up to case and surrounding white space.

    Source: Qwen-VL eval_mm/evaluate_vqa.py, `evaluate_exact_match_accuracy`.
    """
    return _share(rows, str, equals)


def containment(rows: Sequence[Row]) -> Scored:
    """Compute the share of answers that contain a reference once their full stops are deleted: "13" is right for "3".

    Source: Monkey eval/evaluate_vqa.py, `evaluate_exact_match_accuracy`. The figure is not comparable with `equality`.
    """
    return _share(rows, str, contains)


def gqa_accuracy(rows: Sequence[Row]) -> Scored:
    """Score GQA as LLaVA does: final full stops are dropped, then texts in lower case must be equal.

    Source: LLaVA scripts/convert_gqa_for_eval.py, then GQA's eval.py.
    """
    return _share(rows, lambda text: text.rstrip(".").lower(), equals)


def gqa_accuracy_qwen_vl(rows: Sequence[Row]) -> Scored:
    """Score GQA as Qwen-VL does: `short_answer`, then equality. Source: Qwen-VL eval_mm/evaluate_vqa.py."""
    return _share(rows, short_answer, equals)


def gqa_containment(rows: Sequence[Row]) -> Scored:
    """Score GQA as Monkey does: `short_answer`, then containment. Source: Monkey eval/evaluate_vqa.py."""
    return _share(rows, short_answer, contains)


def equals(answer: str, reference: str) -> bool:
    """Return True if texts are equal up to case and surrounding white space."""
    return answer.strip().lower() == reference.strip().lower()


def contains(answer: str, reference: str) -> bool:
    """Return True if the reference occurs in the answer, in which full stops are deleted first."""
    return reference.strip().lower() in answer.strip().lower().replace(".", "")


def short_answer(text: str) -> str:
    """Shorten a GQA answer as Qwen-VL does: "The man is wearing a hat." -> "hat".

    "this is an image of a cat" becomes the empty string, as in the reference.
    """
    for end in ".,!":
        text = text.strip().split(end)[0]
    text = text.lower()
    for article in ("is ", "are ", "a ", "an ", "the "):
        if article in text:
            text = text.split(article)[1]
    return text.split(" of")[0].strip()


def _share(rows: Sequence[Row], clean: Callable[[str], str], agree: Callable[[str, str], bool]) -> Scored:
    return mean_of([float(any(agree(clean(row.prediction), gold) for gold in row.references)) for row in rows])
