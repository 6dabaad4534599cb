"""Post-processing of answers by name, before they are scored or submitted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from lit_mm.errors import UserError
from lit_mm.evaluation.metrics.vqa import normalise_m4c

NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
FOUR = re.compile(rf"[\[(<]{NUMBER},{NUMBER},{NUMBER},{NUMBER}[\])>]")


def first_line(text: str) -> str:
    """Return the first line that is not empty."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def unit_box(text: str) -> str:
    """Rewrite the first [x1, y1, x2, y2] in shares of the image as "(x1,y1),(x2,y2)" on a grid of 0 to 999."""
    return _box(text, 999.0)


def grid_box(text: str) -> str:
    """Rewrite the first [[x1,y1,x2,y2]] on a grid of 0 to 999 as "(x1,y1),(x2,y2)"."""
    return _box(text, 1.0)


def _box(text: str, scale: float) -> str:
    match = FOUR.search(text)
    if match is None:
        return text
    x1, y1, x2, y2 = (float(number) * scale for number in match.groups())
    return f"({x1:g},{y1:g}),({x2:g},{y2:g})"


POSTPROCESSING: dict[str, Callable[[str], str]] = {
    "first_line": first_line,
    "grid_box": grid_box,
    "unit_box": unit_box,
    "vqa_server": normalise_m4c,
}


def find_postprocessing(name: str, where: str) -> Callable[[str], str]:
    """Look up a step by its name.

    Raises:
        UserError: there is no such step.
    """
    if name not in POSTPROCESSING:
        raise UserError(f"{where}: unknown post-processing {name!r}; there are {', '.join(POSTPROCESSING)}")
    return POSTPROCESSING[name]


def postprocess(text: str, names: Iterable[str]) -> str:
    """Apply steps in order."""
    for name in names:
        text = POSTPROCESSING[name](text)
    return text
