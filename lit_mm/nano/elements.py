"""What a nano page is made of. All places are in unit coordinates of the page: x of its width, y of its height."""

from __future__ import annotations

from typing import NamedTuple

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]  # left, top, right, bottom


class Text(NamedTuple):
    """One word or number on one line.

    The renderer makes it exactly `width` wide: a word keeps its place and size under another weight or page size.
    """

    text: str
    left: float
    top: float  # of the capitals
    width: float
    cap: float  # height of the capitals

    @property
    def box(self) -> Box:
        return self.left, self.top, self.left + self.width, self.top + self.cap


class Shape(NamedTuple):
    """A filled shape that touches all four sides of its box."""

    kind: str  # of `words.SHAPES`
    colour: str  # of `words.COLOURS`
    box: Box


class Bar(NamedTuple):
    """A filled rectangle of a chart."""

    colour: str
    box: Box


class Rule(NamedTuple):
    """A thin horizontal or vertical line between two corners of `box`."""

    box: Box
    strength: float  # 0 invisible, 1 as dark as the text


Element = Text | Shape | Bar | Rule


class Style(NamedTuple):
    """How a page looks, apart from what is on it and where.

    Attributes:
        ground, ink: colours of the paper and of the text.
        tint: added to the colours of shapes and bars.
        weight: stroke added around letters, as a share of the height of the capitals; 0 is the regular face.
        noise: largest deviation of a pixel, of 255; 0 for none.
        grain: where in the fixed noise field the page lies, pixels.
        frame: a thin line runs around the page.
    """

    ground: Colour
    ink: Colour
    tint: Colour
    weight: float
    noise: int
    grain: tuple[int, int]
    frame: bool
