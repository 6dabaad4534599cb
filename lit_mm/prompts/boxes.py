"""Regions of a picture as text in Qwen-VL's form: whole thousandths of its width and height, from 0 to 999.

`<ref>the dog</ref><box>(12,0),(999,587)</box>` holds a phrase, then its boxes with top left and bottom right corner.
The numbers are plain digits. Since they are relative, they do not change when the picture is stretched to a square.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Box = tuple[int, int, int, int]  # left, top, right, bottom; thousandths
STEPS = 1000
MARKED = re.compile(r"<ref>(?P<ref>.*?)</ref>|<box>\((\d+),(\d+)\),\((\d+),(\d+)\)</box>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Region:
    """A phrase and the boxes that a text assigns to it.

    Attributes:
        phrase: text inside <ref>; "" for boxes without a phrase.
        boxes: boxes that follow the phrase.
    """

    phrase: str
    boxes: tuple[Box, ...]


def to_pixels(box: Box, height: int, width: int) -> tuple[float, float, float, float]:
    """Convert a box to pixels for metrics; 999 is the far side. Source: eval_mm/evaluate_grounding.py."""
    sides = width, height, width, height
    return tuple(x / (STEPS - 1) * side for x, side in zip(box, sides, strict=True))


def find_regions(text: str) -> list[Region]:
    """Parse the regions in a model's text, in order. Cut or malformed boxes are skipped."""
    regions: list[Region] = []
    for match in MARKED.finditer(text):
        if match["ref"] is not None:
            regions.append(Region(match["ref"], ()))
            continue
        box: Box = tuple(int(number) for number in match.groups()[1:])
        last = regions.pop() if regions else Region("", ())
        regions.append(Region(last.phrase, (*last.boxes, box)))
    return regions
