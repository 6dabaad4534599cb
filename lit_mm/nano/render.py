"""This module draws the elements of a page with Pillow alone, in Pillow's built-in font (Aileron)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont

from lit_mm.nano.elements import Bar, Box, Colour, Element, Rule, Shape, Style, Text
from lit_mm.nano.words import COLOURS

TRACKING = 0.08  # extra space between letters, as a share of cap height; keeps neighbours apart at 8 px
ASCENT, DESCENT = 1.25, 0.45  # room above and below the baseline, as shares of cap height
FIELD = 512  # side of the noise field, pixels; larger than any page
MASTER = 256  # side of the mask of a shape, pixels; shrinking it to the page smooths the edges


def render(height: int, width: int, style: Style, elements: Sequence[Element]) -> Image.Image:
    """Draw one page.

    Args:
        height, width: size of the image, pixels.
        style: colours, font weight, noise and frame.
        elements: elements in drawing order, in unit coordinates.
    Returns:
        RGB image of `height` x `width` pixels.
    """
    image = Image.new("RGB", (width, height), style.ground)
    draw = ImageDraw.Draw(image)
    if style.frame:
        inset = max(1, round(0.012 * min(height, width)))
        thickness = max(1, round(0.006 * min(height, width)))
        corners = (inset, inset, width - 1 - inset, height - 1 - inset)
        draw.rectangle(corners, outline=_mix(style.ground, style.ink, 0.5), width=thickness)
    for element in elements:
        if isinstance(element, Text):
            _draw_text(image, element, style)
        elif isinstance(element, Shape):
            left, top, right, bottom = _pixels(element.box, height, width)
            mask = _master(element.kind).resize((right - left, bottom - top), Image.Resampling.BILINEAR)
            image.paste(_tinted(element.colour, style), (left, top), mask)
        elif isinstance(element, Bar):
            image.paste(_tinted(element.colour, style), _pixels(element.box, height, width))
        elif isinstance(element, Rule):
            left, top, right, bottom = _pixels(element.box, height, width)
            thickness = max(1, round(0.005 * min(height, width)))
            right, bottom = max(right, left + thickness), max(bottom, top + thickness)
            image.paste(_mix(style.ground, style.ink, element.strength), (left, top, right, bottom))
    if style.noise:
        x, y = style.grain
        noise = _noise_field(style.noise).crop((x, y, x + width, y + height))
        image = ImageChops.add(image, noise, 1.0, -style.noise)
    return image


@lru_cache(maxsize=4096)
def text_width(text: str) -> float:
    """Return the natural width of a text as a multiple of cap height, tracking included."""
    return sum(_advances()[letter] for letter in text) + TRACKING * (len(text) - 1)


def advance(letter: str) -> float:
    """Return the natural advance width of one letter as a multiple of cap height, without tracking."""
    return _advances()[letter]


def _draw_text(image: Image.Image, element: Text, style: Style) -> None:
    cap = max(4, round(element.cap * image.height))
    origins, x = [], 0.0
    for letter in element.text:
        origins.append(x)
        x += (_advances()[letter] + TRACKING) * cap
    pad = math.ceil(style.weight * cap) + 1  # strokes reach beyond the letters
    natural = math.ceil(x - TRACKING * cap)
    mask = Image.new("L", (natural + 2 * pad, math.ceil((ASCENT + DESCENT) * cap)))
    for letter, origin in zip(element.text, origins, strict=True):
        glyph, left, top = _glyph(letter, cap, style.weight)
        at = (pad + left + round(origin), top)
        mask.paste(255, at, glyph)
    width = max(len(element.text), round(element.width * image.width))
    scale = width / natural
    if abs(scale - 1) > 0.02:
        mask = mask.resize((max(1, round(mask.width * scale)), mask.height), Image.Resampling.BICUBIC)
    left = round(element.left * image.width - pad * scale)
    top = round(element.top * image.height) + cap - round(ASCENT * cap)
    image.paste(style.ink, (left, top), mask)


@lru_cache(maxsize=256)
def _font(cap: int) -> ImageFont.FreeTypeFont:
    """Return the font at the size that makes capitals `cap` pixels high."""
    return ImageFont.load_default(cap / _cap_share())


@lru_cache(maxsize=1)
def _cap_share() -> float:
    """Return the cap height as a share of the font size, about 0.7."""
    _, top, _, bottom = ImageFont.load_default(400).getbbox("H", anchor="ls")
    return (bottom - top) / 400


@lru_cache(maxsize=1)
def _advances() -> dict[str, float]:
    """Advance width of each character as a multiple of cap height."""
    font = ImageFont.load_default(400)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    return {letter: font.getlength(letter) / (400 * _cap_share()) for letter in letters}


@lru_cache(maxsize=8192)
def _glyph(letter: str, cap: int, weight: float) -> tuple[Image.Image, int, int]:
    """Draw one letter. Returns its mask, its left relative to the origin, and its top relative to the line (pixels)."""
    reach = 2 * cap
    canvas = Image.new("L", (2 * reach, 2 * reach))
    draw = ImageDraw.Draw(canvas)
    draw.text((reach, reach), letter, fill=255, font=_font(cap), anchor="ls", stroke_width=weight * cap)
    left, top, right, bottom = canvas.getbbox() or (reach, reach, reach + 1, reach + 1)
    return canvas.crop((left, top, right, bottom)), left - reach, top - reach + round(ASCENT * cap)


@lru_cache(maxsize=16)
def _master(kind: str) -> Image.Image:
    """Mask of a shape that touches all four sides of a `MASTER` x `MASTER` square."""
    side = MASTER - 1
    image = Image.new("L", (MASTER, MASTER))
    draw = ImageDraw.Draw(image)
    if kind == "circle":
        draw.ellipse((0, 0, side, side), fill=255)
    else:
        draw.polygon([(x * side, y * side) for x, y in _outline(kind)], fill=255)
    return image


def _outline(kind: str) -> list[tuple[float, float]]:
    """Return the corners of a shape in the unit square."""
    if kind == "square":
        return [(0, 0), (1, 0), (1, 1), (0, 1)]
    if kind == "triangle":
        return [(0.5, 0), (1, 1), (0, 1)]
    if kind == "diamond":
        return [(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)]
    if kind == "cross":
        a, b = 0.32, 0.68
        return [(a, 0), (b, 0), (b, a), (1, a), (1, b), (b, b), (b, 1), (a, 1), (a, b), (0, b), (0, a), (a, a)]
    if kind == "star":
        spokes = [
            (radius * math.sin(angle), -radius * math.cos(angle))
            for point in range(5)
            for radius, angle in ((1.0, 0.4 * math.pi * point), (0.42, 0.4 * math.pi * (point + 0.5)))
        ]
        xs, ys = [x for x, _ in spokes], [y for _, y in spokes]
        return [((x - min(xs)) / (max(xs) - min(xs)), (y - min(ys)) / (max(ys) - min(ys))) for x, y in spokes]
    raise ValueError(f"render draws circle, square, triangle, diamond, cross and star, got {kind!r}")


@lru_cache(maxsize=16)
def _noise_field(amplitude: int) -> Image.Image:
    """Draw an image of `FIELD` x `FIELD` pixels, uniform in 0..2 x amplitude. It is cached: drawing costs 6 ms."""
    values = np.random.Generator(np.random.PCG64(amplitude)).integers(0, 2 * amplitude + 1, (FIELD, FIELD, 3), np.uint8)
    return Image.fromarray(values)


def _pixels(box: Box, height: int, width: int) -> tuple[int, int, int, int]:
    """Convert a box to pixels (left, top, right, bottom); both sides are at least one pixel."""
    left, top, right, bottom = box
    x, y = round(left * width), round(top * height)
    return x, y, max(x + 1, round(right * width)), max(y + 1, round(bottom * height))


def _mix(ground: Colour, ink: Colour, share: float) -> Colour:
    """Blend two colours: `share` 0 is the ground, 1 the ink."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(ground, ink, strict=True))
    return red, green, blue


def _tinted(colour: str, style: Style) -> Colour:
    red, green, blue = (min(255, max(0, a + b)) for a, b in zip(COLOURS[colour], style.tint, strict=True))
    return red, green, blue
