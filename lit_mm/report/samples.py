"""This module draws samples.png: held-out documents with the answers of the model."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lit_mm.errors import counted
from lit_mm.evaluation.score import Prediction, of_each_skill
from lit_mm.report.colours import GREY, INK, RIGHT, WRONG
from lit_mm.run.files import write_whole

SCALE = 2  # the sheet is drawn at twice the nominal size, which keeps small text sharp
SHEET = 1200 * SCALE  # width of a row of cards, pixels
PICTURE = (200 * SCALE, 340 * SCALE)  # largest (height, width) of a picture, pixels
MARGIN, GAP, PAD, TEXT = 16 * SCALE, 14 * SCALE, 10 * SCALE, 13 * SCALE


def draw_samples(predictions: Sequence[Prediction], path: str | Path, per_skill: int = 2) -> None:
    """Draw the first predictions of every skill: pictures, question, truth, and the answer in green or red.

    Args:
        predictions: predictions on held-out documents.
        path: path of the PNG.
        per_skill: number of cards per skill; the first predictions are drawn, right or wrong.
    """
    cards = of_each_skill(predictions, per_skill)
    title = f"{sum(p.correct for p in cards)} of {counted(len(cards), 'held-out answer')} correct"
    rows = _rows(cards)
    heading = MARGIN + round(2.6 * TEXT)
    height = sum(max(card.height for card in row) + GAP for row in rows)
    size = SHEET + 2 * MARGIN, heading + height + MARGIN - GAP
    sheet = Image.new("RGB", size, "#f3f4f6")
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, font=_font(round(1.25 * TEXT), bold=True), fill=INK)
    top = heading
    for row in rows:
        left, height = MARGIN, max(card.height for card in row)
        for card in row:
            draw.rounded_rectangle(
                (left, top, left + card.width - 1, top + height - 1), radius=6 * SCALE, fill="white", outline="#d5d8dc"
            )
            sheet.paste(card.crop((4, 4, card.width - 4, card.height - 4)), (left + 4, top + 4))
            left += card.width + GAP
        top += height + GAP
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    write_whole(path, buffer.getvalue())


def _rows(predictions: Sequence[Prediction]) -> list[list[Image.Image]]:
    """Fill rows with cards from left to right; the cards of a row share the unused width."""
    rows: list[list[tuple[Prediction, list[Image.Image]]]] = []
    room = 0
    for prediction in predictions:
        pictures = [fit(picture.read()) for picture in prediction.document.pictures]
        width = _width(pictures)
        if not rows or width > room:
            rows.append([])
            room = SHEET
        rows[-1].append((prediction, pictures))
        room -= width + GAP
    cards = []
    for row in rows:
        widths = [_width(pictures) for _, pictures in row]
        spare = (SHEET - GAP * (len(row) - 1) - sum(widths)) // len(row)
        spare = max(0, min(spare, sum(widths) // (3 * len(row))))  # keeps the cards of a short last row narrow
        cards.append([_card(p, pictures, width + spare) for (p, pictures), width in zip(row, widths, strict=True)])
    return cards


def _width(pictures: Sequence[Image.Image]) -> int:
    """Return the smallest width of a card, pixels."""
    row = sum(picture.width for picture in pictures) + PAD * (len(pictures) - 1)
    return min(SHEET, max(row, 230 * SCALE) + 2 * PAD)


def _card(prediction: Prediction, pictures: Sequence[Image.Image], width: int) -> Image.Image:
    """Draw one document: pictures side by side, text below."""
    document, inner = prediction.document, width - 2 * PAD
    row = sum(p.width for p in pictures) + PAD * (len(pictures) - 1)
    if row > inner:  # a story of many pages
        shrink = inner / row
        pictures = [p.resize((max(1, int(p.width * shrink)), max(1, int(p.height * shrink)))) for p in pictures]
        row = sum(p.width for p in pictures) + PAD * (len(pictures) - 1)
    plain, bold = _font(TEXT), _font(TEXT, bold=True)
    color, mark = (RIGHT, "\u2713") if prediction.correct else (WRONG, "\u2717")
    indent = round(plain.getlength("answer ")) + PAD
    lines = [("", line, plain, INK, 0) for line in wrap(document.question.strip(), plain, inner)]
    lines.append(("", "", plain, INK, 0))
    answer = f"{mark} {prediction.answer.strip() or '(nothing)'}"
    for label, text, ink in (("truth", document.answer.strip(), INK), ("answer", answer, color)):
        wrapped = wrap(text, bold, inner - indent)
        lines += [(label if not n else "", line, bold, ink, indent) for n, line in enumerate(wrapped)]

    step, top = round(1.4 * TEXT), PAD + round(1.4 * TEXT)
    band = max((picture.height for picture in pictures), default=0)
    card = Image.new("RGB", (width, top + band + PAD + step * len(lines) + PAD), "white")
    draw = ImageDraw.Draw(card)
    draw.text((PAD, PAD - 2 * SCALE), document.skill or "document", font=_font(round(0.9 * TEXT), bold=True), fill=GREY)
    left = PAD + (inner - row) // 2
    for picture in pictures:
        y = top + (band - picture.height) // 2
        card.paste(picture, (left, y))
        draw.rectangle((left - 1, y - 1, left + picture.width, y + picture.height), outline="#c8ccd0")
        left += picture.width + PAD
    y = top + band + PAD
    for label, line, font, ink, shift in lines:
        draw.text((PAD, y), label, font=plain, fill=GREY)
        draw.text((PAD + shift, y), line, font=font, fill=ink)
        y += step
    return card


def fit(image: Image.Image) -> Image.Image:
    """Resize a picture to the largest size that a card allows; the aspect ratio is kept."""
    scale = min(PICTURE[0] / image.height, PICTURE[1] / image.width)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int, most: int = 6) -> list[str]:
    """Break a text into at most `most` lines of at most `width` pixels; a text that is cut ends in "...".

    Words wider than a line are broken, because answers of an untrained model may be one long run of characters.
    """
    lines = [""]
    for word in text.split():
        for piece in _pieces(word, font, width):
            joined = f"{lines[-1]} {piece}".strip()
            if font.getlength(joined) <= width:
                lines[-1] = joined
            else:
                lines.append(piece)
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1][:-3] + "..."]
    return lines


def _pieces(word: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    pieces = [""]
    for character in word:
        if font.getlength(pieces[-1] + character) > width and pieces[-1]:
            pieces.append("")
        pieces[-1] += character
    return pieces


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Load DejaVu Sans, which is part of matplotlib and covers Latin, Greek, Cyrillic and the check marks."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)
