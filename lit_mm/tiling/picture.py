"""A tile plan drawn on its image: every view numbered, padding dark."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from lit_mm.tiling.plan import Size, TilePlan, View

LONGER = 1000  # of the drawn frame, pixels
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#d020a0")
PADDING, BLANK, WHOLE, PAPER, INK = "#303030", "#d8d8d8", "#000000", "#ffffff", "#202020"


def region(view: View, image: Size) -> tuple[float, float, float, float]:
    """Return what a view shows: (left, top, right, bottom) in pixels of the source image. Outside of it is padding.

    Args:
        image: (height, width) of the source image, pixels.
    """
    top, left, height, width = view.box
    down, across = image[0] / view.resize[0], image[1] / view.resize[1]
    left, top = left - view.offset[1], top - view.offset[0]
    return left * across, top * down, (left + width) * across, (top + height) * down


def draw_plan(plan: TilePlan, image: Image.Image | None = None, caption: str = "") -> Image.Image:
    """Draw the outline and number of every view on an image, from 1 in the order in which the encoder sees them.

    Args:
        image: of the plan's size; None for a blank one.
        caption: written below.
    """
    high, wide = plan.image
    regions = [region(view, plan.image) for view in plan.views]
    lefts, tops, rights, bottoms = zip((0, 0, wide, high), *regions, strict=True)
    left, top, right, bottom = min(lefts), min(tops), max(rights), max(bottoms)
    scale = LONGER / max(right - left, bottom - top)

    def scaled(box: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
        """Convert source pixels to those of the picture; at least one pixel wide and high."""
        x, y, to_x, to_y = ((edge - start) * scale for edge, start in zip(box, (left, top, left, top), strict=True))
        return round(x), round(y), max(round(to_x), round(x) + 1), max(round(to_y), round(y) + 1)

    _, _, width, height = scaled((left, top, right, bottom))
    text_font, label_font = ImageFont.load_default(18), ImageFont.load_default(22)
    lines = caption.splitlines()
    sheet = Image.new("RGB", (max(width, LONGER) + 20, height + 20 + 26 * len(lines) + (10 if lines else 0)), PAPER)
    frame = Image.new("RGB", (width, height), PADDING)
    x, y, to_x, to_y = scaled((0, 0, wide, high))
    picture = Image.new("RGB", (1, 1), BLANK) if image is None else image
    frame.paste(picture.resize((to_x - x, to_y - y)), (x, y))
    sheet.paste(frame, (10, 10))
    draw = ImageDraw.Draw(sheet)
    for number, box in enumerate(regions):
        x, y, to_x, to_y = (edge + 10 for edge in scaled(box))
        tile = number in plan.tiles
        colour = COLOURS[(number - plan.tiles.start) % len(COLOURS)] if tile else WHOLE
        # Neighbours and windows that overlap: each outline lies inside its own edge, the whole around them all
        inset = 4 if tile else 0
        corner = max(to_x - 1 - inset, x + inset), max(to_y - 1 - inset, y + inset)
        draw.rectangle((x + inset, y + inset, *corner), outline=colour, width=3)
        at = ((x + to_x) / 2, (y + to_y) / 2) if tile else (x + 20, y + 18)
        label = draw.textbbox(at, str(number + 1), font=label_font, anchor="mm")
        draw.rectangle((label[0] - 8, label[1] - 6, label[2] + 8, label[3] + 6), fill=colour)
        draw.text(at, str(number + 1), fill=PAPER, font=label_font, anchor="mm")
    for number, line in enumerate(lines):
        draw.text((12, height + 26 + 26 * number), line, fill=INK, font=text_font)
    return sheet
