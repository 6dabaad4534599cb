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
COLOURS = {"regions": "#c0392b", "segments": "#2471a3", "text": "#1e8449"}  # kind of text -> colour of its boxes
OTHER = "#7d3c98"
LOW = 24  # side of a box, pixels, below which its line is thin
HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>annotated images</title>
<style>
body { max-width: 75rem; margin: 1.5rem auto; padding: 0 1rem; font: .95rem/1.45 system-ui, sans-serif; }
body { color: #1f2328; }
section { display: flex; gap: 1.2rem; padding: 1rem 0; border-top: 1px solid #d0d7de; flex-wrap: wrap; }
section > div { flex: 1 1 26rem; min-width: 0; }
img { max-width: 100%; height: auto; border: 1px solid #d0d7de; }
table { border-collapse: collapse; width: 100%; font-size: .85rem; }
td, th { text-align: left; padding: .15rem .5rem .15rem 0; vertical-align: top; overflow-wrap: anywhere; }
tr.dropped { color: #8c959f; text-decoration: line-through; }
tr.dropped td.reason { text-decoration: none; }
p.output { background: #f6f8fa; padding: .5rem .7rem; white-space: pre-wrap; overflow-wrap: anywhere; }
small { color: #57606a; }
</style>
</head>
<body>
"""


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
            _counts(ledger),
            *(_section(account, inputs) for account in selection),
            "</body>\n</html>\n",
        ]
    )


def _experts(identities: Mapping[str, Identity]) -> str:
    columns = ("expert", "weights", "licence", "version", "stands_for")
    rows = [(name, *(asdict(identity)[column] for column in columns)) for name, identity in identities.items()]
    return _table(("name", "class", "weights", "licence", "version", "stands in for"), rows)


def _counts(ledger: Mapping[str, Any]) -> str:
    rows = [
        (kind, counts["texts"], counts["kept"], f"{counts['noise_ratio']:.1%}")
        for kind, counts in ledger["texts"].items()
    ]
    return _table(("texts", "number", "kept", "noise ratio"), rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f"<table>\n<tr>{head}</tr>\n{body}</table>\n"


def _section(account: Mapping[str, Any], inputs: Inputs) -> str:
    """Write one sample: the image at the left, texts and verdicts at the right."""
    image = inputs.entry(account["row"]).picture.read().convert("RGB")
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    draw_boxes(image, account["statements"]).save(buffer, format="PNG")
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    lines = []
    for statement in account["statements"]:
        score = "" if statement["score"] is None else f"{statement['score']:.3f}"
        colour = COLOURS.get(statement["kind"], OTHER)
        lines.append(
            f'<tr class="{"kept" if statement["kept"] else "dropped"}">'
            f'<td style="color: {colour}">{escape(statement["kind"])}</td><td>{escape(statement["text"])}</td>'
            f'<td>{score}</td><td class="reason">{escape(statement["reason"])}</td></tr>\n'
        )
    outputs = "".join(
        f'<p class="output"><small>{escape(output["subset"])}</small>\n{escape(output["text"])}</p>\n'
        for output in account["outputs"]
    )
    licence = f", {escape(account['licence'])}" if account["licence"] else ""
    return (
        f'<section>\n<div><img src="{source}" alt="{escape(account["id"])}">\n'
        f"<small>row {account['row']}, {escape(account['source'])}: {escape(account['where'])}{licence}</small></div>\n"
        f"<div>{outputs or '<p>no text of this image passed</p>'}\n"
        f"<table>\n<tr><th>kind</th><th>text</th><th>score</th><th></th></tr>\n{''.join(lines)}</table></div>\n"
        "</section>\n"
    )


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
