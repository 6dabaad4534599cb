"""What a run leaves to look at: curves, sample answers, a table of accuracies, and a summary."""

from __future__ import annotations

import io
import json
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from lit_mm.evaluation.score import Prediction, Score, of_each_skill

if TYPE_CHECKING:  # at run time the curves and the summary need neither torch nor matplotlib
    from matplotlib.axes import Axes


# Colours of Paul Tol's "bright" scheme, told apart by colour-blind readers (https://personal.sron.nl/~pault/)
PALETTE = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377")
MORE = ("#EE7733", "#009988", "#332288", "#882255", "#999933", "#77AADD")  # of his other schemes
INK, GREY, FAINT, RIGHT, WRONG = "#222222", "#6b6b6b", "#e4e4e4", "#1a7f37", "#c1272d"


# --- curves.png ------------------------------------------------------------------------------------------------------
def draw_curves(
    metrics_rows: Sequence[Mapping[str, Any]],
    accuracy_rows: Sequence[Mapping[str, Any]],
    blind: Score | None,
    path: str | Path,
) -> None:
    """Draw loss, learning rate per part and held-out accuracy over optimizer steps; stages are named at the top.

    Args:
        metrics_rows: of metrics.csv: step, stage, loss, and `lr_<part>` for every part.
        accuracy_rows: of accuracy.csv: step, stage, overall, and one share per skill; may be empty.
        blind: the baseline with other documents' images, drawn dashed.
        path: of the PNG.
    """
    from matplotlib.figure import Figure  # a second of import that only this function needs

    steps = [row["step"] for row in metrics_rows]
    figure = Figure(figsize=(10, 10.5), dpi=130, layout="constrained", facecolor="white")
    loss, rate, accuracy = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 3.4))

    values = [row["loss"] for row in metrics_rows]
    loss.plot(steps, values, color=PALETTE[0], alpha=0.3, linewidth=0.9)
    for first, last in _spans(metrics_rows).values():
        span = slice(bisect_left(steps, first), bisect_right(steps, last))
        loss.plot(steps[span], _smooth(values[span], len(values) // 60), color=PALETTE[0], linewidth=2)
    loss.set_ylabel("loss (nats per token)")
    if values and min(values) > 0 and max(values) / min(values) > 20:
        loss.set_yscale("log")

    parts = [column for column in (metrics_rows[0] if metrics_rows else {}) if column.startswith("lr_")]
    for part, color in zip(parts, _colors(len(parts)), strict=True):
        rates = [row[part] or float("nan") for row in metrics_rows]  # 0 is frozen: no line
        if any(r == r for r in rates):
            rate.plot(steps, rates, color=color, linewidth=1.8, label=part.removeprefix("lr_"))
    peak = max((row[part] for row in metrics_rows for part in parts), default=0.0)
    if peak:
        rate.set_yscale("log")
        rate.set_ylim(peak / 3e3, peak * 2)  # a cosine ends at 0, which no logarithm shows
    rate.set_ylabel("learning rate")

    columns = list(accuracy_rows[0]) if accuracy_rows else []
    skills = [column for column in columns if column not in ("step", "stage", "overall")]
    at = [row["step"] for row in accuracy_rows]
    overall = [100 * row["overall"] for row in accuracy_rows]
    accuracy.plot(at, overall, color=INK, linewidth=2.8, marker="o", markersize=4.5, label="overall", zorder=5)
    if blind is not None:
        accuracy.axhline(100 * blind.overall, color=INK, linewidth=1.4, linestyle=(0, (5, 4)), label="overall, blind")
    for skill, color in zip(skills, _colors(len(skills)), strict=True):
        line = [100 * row[skill] for row in accuracy_rows]
        accuracy.plot(at, line, color=color, linewidth=1.1, marker="o", markersize=2.5, alpha=0.85, label=skill)
    accuracy.set_ylim(-3, 103)
    accuracy.set_ylabel("held-out accuracy (%)")
    accuracy.set_xlabel("optimizer steps, through all stages")

    for axes in (loss, rate, accuracy):
        _tidy(axes)
        if axes is not loss and axes.get_legend_handles_labels()[0]:
            axes.legend(loc="center left", bbox_to_anchor=(1.005, 0.5), frameon=False, fontsize=9, handlelength=1.6)
    _mark_stages((loss, rate, accuracy), metrics_rows)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    _write(path, buffer.getvalue())


def _smooth(values: Sequence[float], reach: int) -> list[float]:
    """Mean over `reach` steps to either side, fewer at the ends: no lag, so a jump stays where it happened."""
    sums = [0.0, *accumulate(values)]
    windows = [(max(0, i - reach), min(len(values), i + reach + 1)) for i in range(len(values))]
    return [(sums[stop] - sums[start]) / (stop - start) for start, stop in windows]


def _spans(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Stage -> its first and last step."""
    spans: dict[str, list[int]] = {}
    for row in rows:
        spans.setdefault(row["stage"], [row["step"], row["step"]])[1] = row["step"]
    return spans


def _colors(count: int) -> list[str]:
    """As many colours as lines: the first six are told apart best; beyond twelve from a continuous map."""
    if count <= len(PALETTE + MORE):
        return list((PALETTE + MORE)[:count])
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["turbo"](0.04 + 0.92 * i / (count - 1))) for i in range(count)]


def _tidy(axes: Axes) -> None:
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.01)
    axes.tick_params(colors=GREY, labelsize=9)
    axes.tick_params(which="minor", length=0)
    axes.yaxis.label.set_color(INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#bbbbbb")


def _mark_stages(panels: Sequence[Axes], rows: Sequence[Mapping[str, Any]]) -> None:
    """A line between two stages, and each stage's name above the first panel."""
    for number, (name, (first, last)) in enumerate(_spans(rows).items()):
        if number:
            for axes in panels:
                axes.axvline(first - 0.5, color=GREY, linewidth=1, linestyle=(0, (2, 2)))
        panels[0].annotate(
            name,
            ((first + last) / 2, 1.02),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="bottom",
            fontsize=11,
            fontweight="bold",
            color=INK,
            parse_math=False,
        )


# --- samples.png -----------------------------------------------------------------------------------------------------
SCALE = 2  # the sheet is drawn at twice its nominal size, so that small text stays sharp
SHEET = 1200 * SCALE  # width of a row of cards, pixels
PICTURE = (200 * SCALE, 340 * SCALE)  # most (height, width) of a picture
MARGIN, GAP, PAD, TEXT = 16 * SCALE, 14 * SCALE, 10 * SCALE, 13 * SCALE


def draw_samples(predictions: Sequence[Prediction], path: str | Path, per_skill: int = 2) -> None:
    """Draw the first predictions of every skill: pictures, question, truth, and the answer in green or red.

    Args:
        predictions: on held-out documents.
        path: of the PNG.
        per_skill: cards per skill. They are the first ones, not chosen by how well they went.
    """
    cards = of_each_skill(predictions, per_skill)
    title = f"{sum(p.correct for p in cards)} of these {len(cards)} held-out answers are correct"
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
    _write(path, buffer.getvalue())


def _rows(predictions: Sequence[Prediction]) -> list[list[Image.Image]]:
    """Cards side by side until a row is full; then they share what is left of its width."""
    rows: list[list[tuple[Prediction, list[Image.Image]]]] = []
    room = 0
    for prediction in predictions:
        pictures = [_fit(picture.read()) for picture in prediction.document.pictures]
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
        spare = max(0, min(spare, sum(widths) // (3 * len(row))))  # the last row is not blown up
        cards.append([_card(p, pictures, width + spare) for (p, pictures), width in zip(row, widths, strict=True)])
    return cards


def _width(pictures: Sequence[Image.Image]) -> int:
    """Least width of a card."""
    row = sum(picture.width for picture in pictures) + PAD * (len(pictures) - 1)
    return min(SHEET, max(row, 230 * SCALE) + 2 * PAD)


def _card(prediction: Prediction, pictures: Sequence[Image.Image], width: int) -> Image.Image:
    """One document: its pictures side by side, and the text below."""
    document, inner = prediction.document, width - 2 * PAD
    row = sum(p.width for p in pictures) + PAD * (len(pictures) - 1)
    if row > inner:  # a story of many pages
        shrink = inner / row
        pictures = [p.resize((max(1, int(p.width * shrink)), max(1, int(p.height * shrink)))) for p in pictures]
        row = sum(p.width for p in pictures) + PAD * (len(pictures) - 1)
    plain, bold = _font(TEXT), _font(TEXT, bold=True)
    color, mark = (RIGHT, "\u2713") if prediction.correct else (WRONG, "\u2717")
    indent = round(plain.getlength("answer ")) + PAD
    lines = [("", line, plain, INK, 0) for line in _wrap(document.question.strip(), plain, inner)]
    lines.append(("", "", plain, INK, 0))
    answer = f"{mark} {prediction.answer.strip() or '(nothing)'}"
    for label, text, ink in (("truth", document.answer.strip(), INK), ("answer", answer, color)):
        wrapped = _wrap(text, bold, inner - indent)
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


def _fit(image: Image.Image) -> Image.Image:
    """As large as a card allows, aspect kept."""
    scale = min(PICTURE[0] / image.height, PICTURE[1] / image.width)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int, most: int = 6) -> list[str]:
    """Lines no wider than `width`; words longer than a line are broken, and what exceeds `most` lines ends in "...".

    Measured in pixels, because answers of an untrained model may be one long run of signs.
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
    """DejaVu Sans, which comes with matplotlib and covers Latin, Greek, Cyrillic and the check marks."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)


# --- the table and the summary ---------------------------------------------------------------------------------------
def accuracy_table(score: Score, blind: Score, predictions: Iterable[Prediction] = ()) -> str:
    """The accuracy of every skill beside the blind baseline, in percent, ready to print.

    Args:
        predictions: those that were scored, to count the documents per skill; without them only the total is given.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    counts: dict[str, int] = {}
    for prediction in predictions:
        counts[prediction.document.skill] = counts.get(prediction.document.skill, 0) + 1
    table = Table(box=box.SIMPLE_HEAVY, show_footer=True, pad_edge=False)
    table.add_column("skill", footer="overall")
    table.add_column("accuracy", footer=_percent(score.overall), justify="right")
    table.add_column("blind", footer=_percent(blind.overall), justify="right")
    table.add_column("n", footer=str(score.count), justify="right")
    for skill, share in score.skills.items():
        table.add_row(skill, _percent(share), _percent(blind.skills.get(skill)), str(counts.get(skill, "")))
    console = Console(file=io.StringIO(), width=100)
    console.print(table)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()).strip("\n")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def write_summary(
    path: str | Path,
    *,
    accuracy: Score,
    blind: Score,
    seconds: float,
    seconds_to_first_step: float | None,
    peak_memory_mb: float,
    stages: Sequence[Mapping[str, Any]],
    **more: Any,
) -> dict[str, Any]:
    """Write summary.json, whole or not at all. Returns what it holds.

    Args:
        seconds: wall time from launch to the end of the run.
        seconds_to_first_step: from launch to the first finished optimizer step; None if this launch made no step.
        stages: one entry a stage, see `stage_summaries`.
        more: other entries, of types that JSON has.
    """
    summary = {
        "accuracy": {"overall": accuracy.overall, "skills": dict(accuracy.skills)},
        "blind": {"overall": blind.overall, "skills": dict(blind.skills)},
        "seconds": seconds,
        "seconds_to_first_step": seconds_to_first_step,
        "peak_memory_mb": peak_memory_mb,
        "stages": [dict(stage) for stage in stages],
        **more,
    }
    _write(path, (json.dumps(summary, indent=2) + "\n").encode())
    return summary


def stage_summaries(metrics_rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per stage: name, optimizer steps, useful tokens, wall seconds, and the loss of its first and last step."""
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for row in metrics_rows:
        stages.setdefault(row["stage"], []).append(row)
    summaries, before = [], 0.0
    for name, rows in stages.items():
        summaries.append(
            {
                "name": name,
                "steps": len(rows),
                "tokens": sum(row["tokens"] for row in rows),
                "seconds": round(rows[-1]["seconds"] - before, 3),
                "first_loss": rows[0]["loss"],
                "last_loss": rows[-1]["loss"],
            }
        )
        before = rows[-1]["seconds"]
    return summaries


def _write(path: str | Path, content: bytes) -> None:
    """A file that is whole or absent, whenever the process is killed."""
    path = Path(path)
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)
