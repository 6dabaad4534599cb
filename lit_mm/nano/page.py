"""A page of the nano world: a description without pixels, from which come its picture, its text and its questions."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log
from random import Random

from PIL import Image

from lit_mm.nano.elements import Box, Colour, Element, Shape, Style, Text
from lit_mm.nano.render import FIELD, render

SHORTEST, LONGEST = 112, 448  # sides of a page, pixels
FINE = 224  # shortest side of a page with fine print, pixels
FINE_CAP = 7.5 / 112  # capitals lower than this are fine print: not for reading once the page is shrunk to 112 x 112
PLAIN_LIGHT: tuple[Colour, ...] = ((250, 250, 250), (248, 244, 234), (232, 234, 236))
PLAIN_DARK: tuple[Colour, ...] = ((30, 30, 34), (16, 16, 18))
LIGHT: tuple[Colour, ...] = (*PLAIN_LIGHT, (226, 238, 250), (228, 244, 228), (252, 232, 236), (252, 246, 208))
DARK: tuple[Colour, ...] = (*PLAIN_DARK, (22, 34, 78), (16, 58, 42), (84, 18, 32), (60, 30, 84))
DARK_INKS: tuple[Colour, ...] = ((10, 10, 10), (20, 30, 90), (12, 74, 40), (120, 16, 24), (84, 46, 16), (74, 22, 110))
LIGHT_INKS: tuple[Colour, ...] = ((255, 255, 255), (252, 244, 216), (255, 232, 110), (170, 236, 250), (200, 250, 190))
COLOURFUL = frozenset(("chart", "count", "shape", "locate", "story"))  # kinds whose colours must stand out


@dataclass(frozen=True, slots=True)
class Page:
    """One page; it satisfies `lit_mm.documents.document.Picture`.

    Attributes:
        kind: the skill whose page this is.
        height, width: native size, pixels.
        style: how it looks.
        elements: what is on it, in unit coordinates, independent of the native size.
        transcript: what is on it as text, in raster order.
        questions: (question, answer) pairs, all distinct, in the order in which they are asked.
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
        """("red circle", (left, top, right, bottom) in unit coordinates) for each shape, in raster order."""
        return tuple((f"{e.colour} {e.kind}", e.box) for e in self.elements if isinstance(e, Shape))

    @property
    def fine_print(self) -> bool:
        """True where text is too small to be read from the page shrunk to 112 x 112 pixels."""
        return any(isinstance(e, Text) and e.cap < FINE_CAP for e in self.elements)

    def read(self) -> Image.Image:
        """Draw the page. RGB, `height` x `width` pixels."""
        return render(self.height, self.width, self.style, self.elements)


def draw_size(rng: Random, shortest: int = SHORTEST) -> tuple[int, int]:
    """(height, width) of a page, pixels: aspect ratios 3:4 to 4:3 mostly, one in seven up to 1.8 either way."""
    widest = log(4 / 3) if rng.random() < 6 / 7 else log(1.8)
    return fit_size(rng, exp(rng.uniform(-widest, widest)), shortest)


def fit_size(rng: Random, aspect: float, shortest: int) -> tuple[int, int]:
    """(height, width) in pixels at an aspect ratio (width / height), both between `shortest` and `LONGEST`."""
    long = rng.uniform(min(LONGEST, shortest * max(aspect, 1 / aspect)), LONGEST)
    width, height = (long, long / aspect) if aspect > 1 else (long * aspect, long)
    return max(shortest, round(height)), max(shortest, round(width))


def draw_style(rng: Random, kind: str) -> Style:
    """A look. One page in four is light on dark, one in two is bold, one in two is noisy."""
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
