"""Skill "chart": bar charts of three to five bars, 1 to 8 units high, with a letter below each and light grid lines."""

from __future__ import annotations

from random import Random

from lit_mm.nano.elements import Bar, Element, Rule
from lit_mm.nano.reading import PX, Groups, write
from lit_mm.nano.words import COLOUR_NAMES, HEADERS

UNITS = 8
TOP, BASE = 6 * PX, 94 * PX  # ends of the grid; one unit is 11 px high, most of a 14-px patch

Bars = tuple[tuple[str, int], ...]  # (letter, height)


def draw_chart(rng: Random) -> Bars:
    """Draw letters and heights. There is exactly one highest and one lowest bar."""
    count = 3 + int(rng.random() * 3)
    while True:
        heights = [1 + int(rng.random() * UNITS) for _ in range(count)]
        if heights.count(max(heights)) == heights.count(min(heights)) == 1:
            return tuple(zip(rng.sample(HEADERS, count), heights, strict=True))


def transcribe_chart(bars: Bars) -> str:
    return " ; ".join(f"{letter} {height}" for letter, height in bars)


def ask_chart(bars: Bars) -> Groups:
    by_height = sorted(bars, key=lambda bar: bar[1])
    return [
        (1.0, [("which bar is the highest?", by_height[-1][0])]),
        (1.0, [("which bar is the lowest?", by_height[0][0])]),
        (1.0, [(f"how high is bar {letter}?", str(height)) for letter, height in bars]),
    ]


def place_chart(rng: Random, bars: Bars, squeeze: float) -> list[Element]:
    """Place grid lines, bars and letters. All pages share one scale, with a line per unit, darker at half height."""
    unit = (BASE - TOP) / UNITS
    left, right = 6 * PX, 106 * PX
    pitch = (right - left) / len(bars)
    half = pitch * rng.uniform(0.28, 0.38)
    cap = rng.uniform(9.5, 11) * PX
    colours = rng.sample(COLOUR_NAMES, len(bars))
    elements: list[Element] = [
        Rule((left, BASE - k * unit, right, BASE - k * unit), 0.45 if k == UNITS // 2 else 0.18)
        for k in range(1, UNITS + 1)
    ]
    for place, ((letter, height), colour) in enumerate(zip(bars, colours, strict=True)):
        x = left + (place + 0.5) * pitch
        elements.append(Bar(colour, (x - half, BASE - height * unit, x + half, BASE)))
        elements.append(write(letter, x, (BASE + 1) / 2, cap, squeeze, 0.5))
    elements.append(Rule((left, BASE, right, BASE), 0.9))
    return elements
