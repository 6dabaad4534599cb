"""The elements of a nano page. Positions are in unit coordinates: x is a share of the page width, y of its height."""

from __future__ import annotations

from typing import NamedTuple

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]  # left, top, right, bottom


class Text(NamedTuple):
    """A text is one word or number on one line.

    The renderer stretches it to exactly `width`, so position and size do not depend on font weight or page size.
    """

    text: str
    left: float
    top: float  # upper edge of the capitals
    width: float
    cap: float  # height of the capitals

    @property
    def box(self) -> Box:
        return self.left, self.top, self.left + self.width, self.top + self.cap


class Shape(NamedTuple):
    """A filled shape that touches all four sides of its box."""

    kind: str  # a key of `words.SHAPES`
    colour: str  # a key of `words.COLOURS`
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
    """The look of a page, independent of its elements.

    Attributes:
        ground, ink: colours of the paper and of the text.
        tint: colour offset added to shapes and bars.
        weight: extra stroke around letters, as a share of the height of the capitals; 0 is the regular face.
        noise: largest deviation of a pixel, out of 255; 0 means no noise.
        grain: left and top of the page in the fixed noise field, pixels.
        frame: True if a thin line runs around the page.
    """

    ground: Colour
    ink: Colour
    tint: Colour
    weight: float
    noise: int
    grain: tuple[int, int]
    frame: bool
