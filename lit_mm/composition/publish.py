"""This module writes an article to files: Markdown, HTML, images, and a record of the composition."""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote

from lit_mm.composition.compose import Article, Slot
from lit_mm.composition.metadata import without_metadata
from lit_mm.documents.document import FromFile, Picture

IMAGES = "images"
WEB = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp")  # formats that browsers show; others are converted to PNG
HEADING = re.compile(r"(#{1,6})\s+(.+)")
INLINE = re.compile(r"([\\`*_\[\]|~])")  # Markdown's markup inside a line
LEADING = re.compile(r"^([#+\-=>]|\d+(?=[.)]))")  # Markdown's markup at the start of a line
PAGE = """<!DOCTYPE html>
<html>
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ max-width: 42rem; margin: 2rem auto; padding: 0 1rem; font: 1.05rem/1.6 Georgia, serif; color: #1f2328; }}
figure {{ margin: 1.5rem 0; text-align: center; }}
img {{ max-width: 100%; height: auto; }}
figcaption {{ margin-top: .4rem; font-size: .9rem; color: #57606a; }}
</style>
</head>
<body>
<article>
{body}
</article>
</body>
</html>
"""


def publish(article: Article, pictures: Sequence[Picture], folder: Path) -> dict[str, Path]:
    """Write article.md, article.html, composition.json and images/ into a folder.

    Images are copied and linked by relative paths, so the folder can be moved. Text by the model is escaped in both
    formats; only a line `# ...` becomes a heading.

    Args:
        article: the article to write.
        pictures: pool of images; slots of the article hold indices into it.
        folder: target folder; it is created if absent.
    Returns:
        Paths of the files "markdown", "html" and "record".
    """
    folder.mkdir(parents=True, exist_ok=True)
    images: dict[int, str] = {}  # line -> relative path
    for number, slot in enumerate((s for s in article.slots if s.image is not None), start=1):
        (folder / IMAGES).mkdir(exist_ok=True)
        images[slot.after] = f"{IMAGES}/{_copy(pictures[slot.image], number, folder / IMAGES)}"
    files = {
        "markdown": (folder / "article.md", markdown(article, images)),
        "html": (folder / "article.html", page(article, images)),
        "record": (folder / "composition.json", record(article, pictures, images)),
    }
    for path, text in files.values():
        path.write_text(text, encoding="utf-8")
    return {kind: path for kind, (path, _) in files.items()}


def markdown(article: Article, images: dict[int, str]) -> str:
    """Format the article as Markdown.

    Args:
        article: the article.
        images: line number -> relative path of the image that follows the line.
    """
    blocks = []
    for number, line in enumerate(article.lines):
        heading = HEADING.fullmatch(line)
        blocks.append(f"{heading[1]} {escape_markdown(heading[2])}" if heading else escape_markdown(line))
        if number in images:
            blocks.append(f"![{escape_markdown(_caption(article, number))}]({quote(images[number])})")
    return "\n\n".join(blocks) + "\n"


def page(article: Article, images: dict[int, str]) -> str:
    """Format the article as one HTML page without scripts or external resources.

    Args:
        article: the article.
        images: line number -> relative path of the image that follows the line.
    """
    blocks = []
    for number, line in enumerate(article.lines):
        heading = HEADING.fullmatch(line)
        tag, text = (f"h{len(heading[1])}", heading[2]) if heading else ("p", line)
        blocks.append(f"<{tag}>{escape_html(text)}</{tag}>")
        if number in images:
            caption = escape_html(_caption(article, number))
            source = escape_html(quote(images[number]))
            blocks.append(f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>')
    return PAGE.format(title=escape_html(article.instruction), body="\n".join(blocks))


def record(article: Article, pictures: Sequence[Picture], images: dict[int, str]) -> str:
    """Format the record of the composition as JSON: captions, candidates and images by file name, and notes."""

    def name(number: int | None) -> str | None:
        if number is None:
            return None
        picture = pictures[number]
        return str(picture.path) if isinstance(picture, FromFile) else f"image {number}"

    def entry(slot: Slot) -> dict:
        names = {"candidates": [name(n) for n in slot.candidates], "image": name(slot.image)}
        return asdict(slot) | names | {"file": images.get(slot.after)}

    content = {
        "instruction": article.instruction,
        "lines": article.lines,
        "slots": [entry(slot) for slot in article.slots],
        "notes": article.notes,
    }
    return _printable(json.dumps(content, ensure_ascii=False, indent=2), keep="\n") + "\n"


def escape_markdown(text: str) -> str:
    """Escape markup of Markdown and HTML, so that the text is displayed literally."""
    escaped = html.escape(_printable(text), quote=False)
    escaped = INLINE.sub(r"\\\1", escaped)
    lead = LEADING.match(escaped)
    if lead is None:
        return escaped
    if lead[1].isdigit():  # "1. " would be a list
        return f"{lead[1]}\\{escaped[lead.end() :]}"
    return f"\\{escaped}"


def escape_html(text: str) -> str:
    """Escape markup of HTML, so that the text is displayed literally."""
    return html.escape(_printable(text))


def _printable(text: str, keep: str = "") -> str:
    """Remove control characters, except those in `keep`, and unpaired surrogates, which UTF-8 cannot encode."""
    return "".join(c for c in text if c in keep or unicodedata.category(c) not in ("Cc", "Cs"))


def _caption(article: Article, line: int) -> str:
    return next(slot.caption for slot in article.slots if slot.after == line)


def _copy(picture: Picture, number: int, folder: Path) -> str:
    """Copy an image file without its EXIF, XMP and comments. Returns the name.

    If there is no file, or browsers do not show its format, a PNG is written.
    """
    path = picture.path if isinstance(picture, FromFile) else None
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem if path else "image").strip("-")[:40] or "image"
    content = without_metadata(path.read_bytes()) if path is not None and path.suffix.lower() in WEB else None
    if path is not None and content is not None:
        name = f"{number}-{stem}{path.suffix.lower()}"
        (folder / name).write_bytes(content)
    else:
        name = f"{number}-{stem}.png"
        picture.read().save(folder / name)
    return name
