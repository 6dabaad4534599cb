"""Accuracy of boxes for referring expressions, on a grid of 0 to 999 (RefCOCO, RefCOCO+, RefCOCOg)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lit_mm.errors import UserError
from lit_mm.evaluation.metrics.rows import Row, Scored, mean_of

Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels
BOX = re.compile(r"\((.*?)\),\((.*?)\)")
GRID = 999
NO_BOX: Box = (0.0, 0.0, 0.0, 0.0)


def grounding_accuracy(rows: Sequence[Row]) -> Scored:
    """Compute the share of boxes with an IoU of at least 0.5. A reference is "x1,y1,x2,y2" in pixels.

    Every row needs `Row.size`.
    Source: Qwen-VL eval_mm/evaluate_grounding.py.

    Raises:
        UserError: a row has no image size, or its reference is no box.
    """
    return mean_of([float(iou(parse_box(row.prediction, *_size(row)), _reference(row)) >= 0.5) for row in rows])


def parse_box(text: str, height: int, width: int) -> Box:
    """Convert the first "(x1,y1),(x2,y2)" of a text from the grid to pixels; an unparsable text gives an empty box.

    "(333,333),(666,666)" in an image of 300 x 300 is (100, 100, 200, 200).
    """
    match = BOX.search(text)
    try:
        corners = [tuple(map(float, corner.split(","))) for corner in match.groups()] if match else []
    except ValueError:
        return NO_BOX
    if [len(corner) for corner in corners] != [2, 2]:
        return NO_BOX
    (x1, y1), (x2, y2) = corners
    return x1 / GRID * width, y1 / GRID * height, x2 / GRID * width, y2 / GRID * height


def iou(a: Box, b: Box) -> float:
    """Compute the intersection over union of two boxes; it is 0 if the union is empty."""
    sides = [min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1)]
    overlap = max(sides[0], 0) * max(sides[1], 0)
    union = _area(a) + _area(b) - overlap
    return overlap / union if union else 0.0


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _size(row: Row) -> tuple[int, int]:
    if min(row.size) < 1:
        raise UserError(f"row {row.id!r}: a box needs the (height, width) of its image in pixels, got {row.size}")
    return row.size


def _reference(row: Row) -> Box:
    values = row.references[0].split(",")
    if len(values) != 4:
        raise UserError(f"row {row.id!r}: the reference must be a box x1,y1,x2,y2 in pixels, got {row.references[0]!r}")
    x1, y1, x2, y2 = map(float, values)
    return x1, y1, x2, y2
