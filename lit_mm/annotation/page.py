"""The page of a run: twenty samples with their boxes, what each expert said, and the texts of the new data set."""

from __future__ import annotations

import base64
import html
import io
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from PIL import Image, ImageDraw

from lit_mm.annotation.description import Identity
from lit_mm.annotation.inputs import Inputs

SAMPLES = 20
SIDE = 480  # longest side of an image on the page, pixels
STRIP = 64  # shortest side of a narrow image, pixels; it scrolls where it is longer than the page is wide
LONGEST = 10 * SIDE  # longest side of a narrow image, pixels
COLOURS = {"regions": "#c0392b", "segments": "#2471a3", "text": "#1e8449"}  # kind of text -> colour of its boxes
OTHER = "#8e5bb0"
NUMBERS = ("rows", "annotated", "bad", "number", "kept", "noise ratio")  # columns that are aligned at the right
LOW = 24  # side of a box, pixels, below which its line is thin
HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>annotated images</title>
<style>
:root { color-scheme: light dark; --ink: #1f2328; --faint: #6e7781; --line: #d0d7de; --box: #f6f8fa; --paper: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --faint: #8b949e; --line: #30363d; --box: #161b22; --paper: #0d1117; }
  tr.kept td.kind, b.kind { filter: brightness(1.5); }
}
body { max-width: 75rem; margin: 1.5rem auto; padding: 0 1rem; font: .95rem/1.45 system-ui, sans-serif; }
body { color: var(--ink); background: var(--paper); }
section { display: flex; gap: 1.2rem; padding: 1rem 0; border-top: 1px solid var(--line); flex-wrap: wrap; }
section > div { flex: 1 1 26rem; min-width: 0; }
img { display: block; max-width: 100%; height: auto; border: 1px solid var(--line); }
div.strip { overflow: auto; max-height: 40rem; }
div.strip img { max-width: none; }
div.table { overflow-x: auto; margin: 0 0 1.2rem; }
table { border-collapse: collapse; font-size: .85rem; }
section table { width: 100%; }
td, th { text-align: left; padding: .15rem .8rem .15rem 0; vertical-align: top; }
td.kind, td.number { white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.text { width: 50%; text-align: start; overflow-wrap: anywhere; }
tr.dropped, span.dropped { color: var(--faint); }
tr.dropped td.text { text-decoration: line-through; }
div.output { background: var(--box); padding: .5rem .7rem; margin: 0 0 1rem; }
div.output div { white-space: pre-wrap; overflow-wrap: anywhere; }
small { display: block; color: var(--faint); overflow-wrap: anywhere; }
</style>
</head>
<body>
"""
LEGEND = (
    "<p>Boxes: "
    + ", ".join(f'<b class="kind" style="color: {colour}">{kind}</b>' for kind, colour in COLOURS.items())
    + '; <span class="dropped">those of dropped texts are thin and grey</span>.</p>\n'
)


def write_page(
    accounts: Iterable[Mapping[str, Any]],
    ledger: Mapping[str, Any],
    identities: Mapping[str, Identity],
    inputs: Inputs,
    samples: int = SAMPLES,
) -> str:
    """Write the HTML page, which needs no other file.

    Args:
        accounts: accounts of all rows.
        ledger: ledger of the run.
        identities: facts of the experts by name.
        inputs: rows, whose images are read.
        samples: number of rows, which are spread evenly over those without a fault.
    """
    count = sum(counts["annotated"] for counts in ledger["rows"].values())
    places = {number * count // samples for number in range(samples)} if count else set()
    selection = []
    place = 0
    for account in accounts:
        if account["fault"] is None:
            if place in places:
                selection.append(account)
            place += 1
    title = f"<h1>{len(selection)} of {count:,} annotated images</h1>\n"
    return "".join(
        [
            HEAD,
            title,
            _experts(identities),
            _rows(ledger),
            _texts(ledger),
            LEGEND if selection else "",
            *(_section(account, inputs) for account in selection),
            "</body>\n</html>\n",
        ]
    )


def _experts(identities: Mapping[str, Identity]) -> str:
    columns = ("expert", "weights", "licence", "version", "stands_for")
    rows = [(name, *(asdict(identity)[column] for column in columns)) for name, identity in identities.items()]
    return _table(("expert", "class", "weights", "licence", "version", "stands in for"), rows)


def _rows(ledger: Mapping[str, Any]) -> str:
    rows = [
        (name, counts["rows"], counts["annotated"], counts["bad"], ", ".join(counts["kinds"]).replace("_", " "))
        for name, counts in ledger["rows"].items()
    ]
    return _table(("source", "rows", "annotated", "bad", ""), rows)


def _texts(ledger: Mapping[str, Any]) -> str:
    rows = [
        (kind, counts["texts"], counts["kept"], f"{counts['noise_ratio']:.1%}", ", ".join(counts["dropped"]))
        for kind, counts in ledger["texts"].items()
    ]
    return _table(("texts", "number", "kept", "noise ratio", "dropped by"), rows) if rows else ""


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    kinds = ["number" if column in NUMBERS else "class" if column == "class" else "plain" for column in columns]
    head = "".join(f'<th class="{kind}">{escape(column)}</th>' for kind, column in zip(kinds, columns, strict=True))
    body = "".join(
        "<tr>" + "".join(_cell(kind, str(cell)) for kind, cell in zip(kinds, row, strict=True)) + "</tr>\n"
        for row in rows
    )
    return f'<div class="table"><table>\n<tr>{head}</tr>\n{body}</table></div>\n'


def _cell(kind: str, text: str) -> str:
    """Write a cell. The path of a class may break behind its dots."""
    content = escape(text).replace(".", ".<wbr>") if kind == "class" else escape(text)
    return f'<td class="{kind}">{content}</td>'


def _section(account: Mapping[str, Any], inputs: Inputs) -> str:
    """Write one sample: the image at the left, outputs, and other texts with their verdicts, at the right."""
    image = scaled(inputs.entry(account["row"]).picture.read().convert("RGB"))
    buffer = io.BytesIO()
    draw_boxes(image, account["statements"]).save(buffer, format="PNG")
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    above = {(output["expert"], output["text"]) for output in account["outputs"] if output["expert"]}
    lines = []
    for statement in account["statements"]:
        if statement["kept"] and statement["score"] is None and (statement["expert"], statement["text"]) in above:
            continue  # the output shows it
        score = "" if statement["score"] is None else f"{statement['score']:.3f}"
        colour = f' style="color: {COLOURS.get(statement["kind"], OTHER)}"' if statement["kept"] else ""
        lines.append(
            f'<tr class="{"kept" if statement["kept"] else "dropped"}">'
            f'<td class="kind"{colour}>{escape(statement["kind"])}</td>'
            f'<td class="text" dir="auto">{escape(statement["text"])}</td>'
            f'<td class="number">{score}</td><td>{escape(statement["reason"])}</td></tr>\n'
        )
    outputs = "".join(_output(output) for output in account["outputs"])
    head = '<tr><th>kind</th><th>text</th><th class="number">score</th><th>why it was dropped</th></tr>'
    table = f"<table>\n{head}\n{''.join(lines)}</table>" if lines else ""
    licence = f", {escape(account['licence'])}" if account["licence"] else ""
    style = "strip" if max(image.size) > SIDE else "image"
    return (
        f'<section>\n<div><div class="{style}"><img src="{source}" alt="{escape(account["id"])}"></div>\n'
        f"<small>row {account['row']}, <bdi>{escape(account['source'])}</bdi>: <bdi>{escape(account['where'])}</bdi>"
        f"{licence}</small></div>\n"
        f"<div>{outputs or '<p>no text of this image passed</p>'}\n{table}</div>\n"
        "</section>\n"
    )


def _output(output: Mapping[str, str]) -> str:
    name = f"{output['subset']}, by {output['expert'] or 'the source'}"
    return f'<div class="output"><small>{escape(name)}</small>\n<div dir="auto">{escape(output["text"])}</div></div>\n'


def scaled(image: Image.Image) -> Image.Image:
    """Fit an image into `SIDE`. Narrow images stay larger and tiny ones are enlarged, so that their boxes are seen."""
    short, long = sorted(image.size)
    scale = SIDE / long
    if long > SIDE and short * scale < STRIP:
        scale = max(scale, min(STRIP / short, LONGEST / long))
    scale = min(scale, 1.0) if long >= STRIP else STRIP / long
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def draw_boxes(image: Image.Image, statements: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Draw the boxes of texts that passed in the colour of their kind; dropped ones get a thin grey line.

    Lines lie outside of the boxes, and are thin around low or narrow ones, so that small text stays readable.
    """
    image = image.copy()
    draw = ImageDraw.Draw(image)
    for statement in sorted(statements, key=lambda statement: statement["kept"]):
        if statement["box"] is None:
            continue
        width, height = image.width - 1, image.height - 1
        left, top, right, bottom = (
            round(share * side) for share, side in zip(statement["box"], (width, height) * 2, strict=True)
        )
        line = 2 if statement["kept"] and min(right - left, bottom - top) >= LOW else 1
        colour = COLOURS.get(statement["kind"], OTHER) if statement["kept"] else "#b0b7be"
        # At the border of the image a line lies inside
        corners = (max(left - line, 0), max(top - line, 0), min(right + line, width), min(bottom + line, height))
        draw.rectangle(corners, outline=colour, width=line)
    return image


def escape(text: str) -> str:
    """Escape markup, and remove control characters and unpaired surrogates."""
    return html.escape("".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs")))
