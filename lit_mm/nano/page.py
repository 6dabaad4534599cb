"""A page of the nano world is a description without pixels; its picture, text and questions are computed from it."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log
from random import Random

from PIL import Image

from lit_mm.nano.elements import Box, Colour, Element, Shape, Style, Text
from lit_mm.nano.render import FIELD, render

SHORTEST, LONGEST = 112, 448  # sides of a page, pixels
FINE = 224  # shortest side of a page with fine print, pixels
FINE_CAP = 7.5 / 112  # capitals lower than this are fine print: unreadable when the page is shrunk to 112 x 112
PLAIN_LIGHT: tuple[Colour, ...] = ((250, 250, 250), (248, 244, 234), (232, 234, 236))
PLAIN_DARK: tuple[Colour, ...] = ((30, 30, 34), (16, 16, 18))
LIGHT: tuple[Colour, ...] = (*PLAIN_LIGHT, (226, 238, 250), (228, 244, 228), (252, 232, 236), (252, 246, 208))
DARK: tuple[Colour, ...] = (*PLAIN_DARK, (22, 34, 78), (16, 58, 42), (84, 18, 32), (60, 30, 84))
DARK_INKS: tuple[Colour, ...] = ((10, 10, 10), (20, 30, 90), (12, 74, 40), (120, 16, 24), (84, 46, 16), (74, 22, 110))
LIGHT_INKS: tuple[Colour, ...] = ((255, 255, 255), (252, 244, 216), (255, 232, 110), (170, 236, 250), (200, 250, 190))
COLOURFUL = frozenset(("chart", "count", "shape", "locate", "story"))  # kinds whose colours must stand out


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a skill. It implements `lit_mm.documents.document.Picture`.

    Attributes:
        kind: name of the skill, one of `lit_mm.nano.skills.SKILLS`.
        height, width: native size, pixels.
        style: colours, font weight, noise and frame.
        elements: texts, shapes, bars and rules in unit coordinates, independent of the native size.
        transcript: content of the page as text, in raster order.
        questions: distinct (question, answer) pairs, in the order in which they are asked.
    """

    kind: str
    height: int
    width: int
    style: Style
    elements: tuple[Element, ...]
    transcript: str
    questions: tuple[tuple[str, str], ...]

    @property
    def boxes(self) -> tuple[tuple[str, Box], ...]:
        """Shapes in raster order, each ("red circle", (left, top, right, bottom)) in unit coordinates."""
        return tuple((f"{e.colour} {e.kind}", e.box) for e in self.elements if isinstance(e, Shape))

    @property
    def fine_print(self) -> bool:
        """True if some text is unreadable when the page is shrunk to 112 x 112 pixels."""
        return any(isinstance(e, Text) and e.cap < FINE_CAP for e in self.elements)

    def read(self) -> Image.Image:
        """Draw the page as an RGB image of `height` x `width` pixels."""
        return render(self.height, self.width, self.style, self.elements)


def draw_size(rng: Random, shortest: int = SHORTEST) -> tuple[int, int]:
    """Draw the (height, width) of a page, pixels.

    Six pages in seven have an aspect ratio between 3:4 and 4:3, the seventh between 1:1.8 and 1.8:1.
    """
    widest = log(4 / 3) if rng.random() < 6 / 7 else log(1.8)
    return fit_size(rng, exp(rng.uniform(-widest, widest)), shortest)


def fit_size(rng: Random, aspect: float, shortest: int) -> tuple[int, int]:
    """Draw a (height, width) with the aspect ratio width / height; both sides are `shortest` to `LONGEST` pixels."""
    long = rng.uniform(min(LONGEST, shortest * max(aspect, 1 / aspect)), LONGEST)
    width, height = (long, long / aspect) if aspect > 1 else (long * aspect, long)
    return max(shortest, round(height)), max(shortest, round(width))


def draw_style(rng: Random, kind: str) -> Style:
    """Draw a look. One page in four is light on dark, one in two is bold, one in two is noisy."""
    random = rng.random
    plain = kind in COLOURFUL
    if random() < 0.25:
        grounds, inks = PLAIN_DARK if plain else DARK, LIGHT_INKS
    else:
        grounds, inks = PLAIN_LIGHT if plain else LIGHT, DARK_INKS
    red, green, blue = grounds[int(random() * len(grounds))]
    return Style(
        ground=(red - int(random() * 10), green - int(random() * 10), blue - int(random() * 10)),
        ink=inks[int(random() * len(inks))],
        tint=(int(random() * 25) - 12, int(random() * 25) - 12, int(random() * 25) - 12),
        weight=(0.0, 0.03, 0.06, 0.08)[int(random() * 4)]
        if kind in ("read_large", "story")
        else (0.0, 0.04)[random() < 0.5],
        noise=(0, 0, 5, 10)[int(random() * 4)],
        grain=(int(random() * (FIELD - LONGEST)), int(random() * (FIELD - LONGEST))),
        frame=random() < 0.2 and kind not in ("locate", "count", "shape"),
    )
