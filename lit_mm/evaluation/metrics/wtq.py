"""Denotation accuracy of WikiTableQuestions, which compares sets of numbers, dates and texts."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from typing import TypeAlias

from lit_mm.evaluation.metrics.rows import Row, Scored, mean_of

# (kind, value to compare), normalised text
Value: TypeAlias = tuple[tuple[str, object], str]
CITATION = re.compile(r"((?<!^)\[[^\]]*\]|\[\d+\]|[•♦†‡*#+])*$")
PARENTHESIS = re.compile(r"(?<!^)( \([^)]*\))*$")
QUOTATION = re.compile(r'^"([^"]*)"$')


def wtq_accuracy(rows: Sequence[Row]) -> Scored:
    """Compute the share of answers with the right set of values.

    A prediction has one value per line; each reference is one value.
    Source: DUE due_evaluator/scorers/wtq_scorer.py, a port of the official evaluator.
    """
    return mean_of([float(same_denotation(row.prediction.split("\n"), row.references)) for row in rows])


def same_denotation(predictions: Sequence[str], references: Sequence[str]) -> bool:
    """Return True if the sets have one size and every reference matches a prediction as number, date or text."""
    predicted, expected = _unique(predictions), _unique(references)
    return len(predicted) == len(expected) and all(any(_match(a, b) for b in predicted) for a in expected)


def normalise_cell(text: str) -> str:
    """Strip diacritics, citations, trailing parentheses, quotation marks and a final full stop; put in lower case.

    "New York (city)" -> "new york", "Café[1]" -> "cafe".
    """
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if unicodedata.category(c) != "Mn")
    for marks, plain in (("[‘’´`]", "'"), ("[“”]", '"'), ("[‐‑‒–—−]", "-")):  # noqa: RUF001
        text = re.sub(marks, plain, text)
    before = None
    while text != before:
        before = text
        text = CITATION.sub("", text.strip())
        text = PARENTHESIS.sub("", text.strip())
        text = QUOTATION.sub(r"\1", text.strip())
    return re.sub(r"\s+", " ", text.removesuffix(".")).lower().strip()


def _unique(texts: Sequence[str]) -> list[Value]:
    return list({value[0]: value for value in map(_value, reversed(texts))}.values())


def _value(text: str) -> Value:
    normal = normalise_cell(text)
    number = _number(text)
    if number is not None:
        return ("number", number), normal
    date = _date(text)
    if date is None:
        return ("text", normal), normal
    year, month, day = date
    return (("number", year) if month == day == -1 else ("date", date)), normal


def _match(a: Value, b: Value) -> bool:
    (kind, value), text = a
    (other_kind, other), other_text = b
    if kind == other_kind == "number":
        return text == other_text or abs(float(str(value)) - float(str(other))) < 1e-6
    return text == other_text or (kind == other_kind and value == other)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    if not math.isfinite(number):
        return None
    return round(number) if abs(number - round(number)) < 1e-6 else number


def _date(text: str) -> tuple[int, int, int] | None:
    """Parse a date such as "2010-05-xx" to (year, month, day), with -1 for an unknown part; None if it is no date."""
    parts = text.lower().split("-")
    if len(parts) != 3:
        return None
    try:
        year = -1 if parts[0] in ("xx", "xxxx") else int(parts[0])
        month, day = (-1 if part == "xx" else int(part) for part in parts[1:])
    except ValueError:
        return None
    in_calendar = (month == -1 or 1 <= month <= 12) and (day == -1 or 1 <= day <= 31)
    return (year, month, day) if in_calendar and (year, month, day) != (-1, -1, -1) else None
