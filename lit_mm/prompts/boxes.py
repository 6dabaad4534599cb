"""Regions of a picture as text in Qwen-VL's form: whole thousandths of its width and height, from 0 to 999.

`<ref>the dog</ref><box>(12,0),(999,587)</box>` holds a phrase, then its boxes with top left and bottom right corner.
The numbers are plain digits. Since they are relative, they do not change when the picture is stretched to a square.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lit_mm.errors import UserError

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


def to_thousandths(box: tuple[float, float, float, float], height: int, width: int) -> Box:
    """Convert a box from pixels to thousandths: floor(1000 x / width), 999 at most.

    Args:
        box: left, top, right, bottom, pixels.
        height, width: size of the picture, pixels.
    Raises:
        UserError: the corners of the box are swapped, or the box leaves the picture.
    Source: the authors do not tell how they round when they write; this rounding fits their reading best.
    """
    left, top, right, bottom = box
    if not (0 <= left <= right <= width and 0 <= top <= bottom <= height) or not height or not width:
        raise UserError(
            f"a box is (left, top, right, bottom) in pixels, inside its picture of {width} x {height}, got {box}"
        )
    sides = width, height, width, height
    thousandths = (min(STEPS - 1, int(STEPS * x / side)) for x, side in zip(box, sides, strict=True))
    return tuple(thousandths)


def to_pixels(box: Box, height: int, width: int) -> tuple[float, float, float, float]:
    """Convert a box to pixels for metrics; 999 is the far side. Source: eval_mm/evaluate_grounding.py."""
    sides = width, height, width, height
    return tuple(x / (STEPS - 1) * side for x, side in zip(box, sides, strict=True))


def to_drawn_pixels(box: Box, height: int, width: int) -> Box:
    """Convert a box to whole pixels for drawing; 1000 is the far side.

    Source: `_fetch_all_box_with_ref` and `draw_bbox_on_latest_picture` of the released tokenizer.
    """
    sides = width, height, width, height
    return tuple(int(x / STEPS * side) for x, side in zip(box, sides, strict=True))


def write_box(box: Box) -> str:
    """Write a box as `<box>(left,top),(right,bottom)</box>`.

    Raises:
        UserError: a coordinate is not in 0 to 999, or the corners are swapped.
    """
    left, top, right, bottom = box
    if not (0 <= left <= right < STEPS and 0 <= top <= bottom < STEPS):
        raise UserError(f"a box is (left, top, right, bottom) in thousandths from 0 to {STEPS - 1}, got {box}")
    return f"<box>({left},{top}),({right},{bottom})</box>"


def write_region(region: Region) -> str:
    """Write `<ref>phrase</ref>` and its boxes."""
    phrase = f"<ref>{region.phrase}</ref>" if region.phrase else ""
    return phrase + "".join(map(write_box, region.boxes))


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
