"""Placeholders of pictures in texts. Those of another format show that a file is read in the wrong format."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lit_mm.documents.sources.sample import Sample

LITERAL = "literal_placeholder"  # note of a sample whose text has a placeholder that stands for no picture

FORMAT = "the format"
# Placeholder -> format or tool that writes it
PICTURES = {
    r"<image>": f"{FORMAT} llava",
    r"<ImageHere>": f"{FORMAT} xcomposer",
    r"<img>[^<>\n]+</img>": f"{FORMAT} qwen_vl",
    r"<image[ _-]?\d+>": "numbered pictures, which no format here has",
    r"<\|image(?:_\d+|_pad)?\|>": "a chat template",
    r"<\|vision_start\|>": "a chat template",
    r"<\|imgpad\|>|<IMG_CONTEXT>|<image_soft_token>|<start_of_image>|<image_placeholder>": "a chat template",
}
REGIONS = ("<ref-object>", "<bbox>")  # of ms-swift
OTHERS = {r"<video>|<\|video(?:_\d+|_pad)?\|>": "video", r"<audio>|<\|audio(?:_\d+|_pad)?\|>": "audio"}
ALL = re.compile("|".join((*PICTURES, *OTHERS)), re.IGNORECASE)


def check_placeholders(
    sample: Sample, turns: Sequence[tuple[str, str]], *, placeholder: str, format_name: str, has_media: bool
) -> None:
    """Refuse placeholders of other formats. If they are text, such as HTML or code, the sample gets a note instead.

    In an answer they are text. In turns of the user or the system they are refused if the sample has media, or if they
    stand at the start or the end of a line. `<img>FILE</img>` is refused anywhere in such a turn. Otherwise they are
    text.

    Args:
        turns: (role, text) of every turn.
        placeholder: placeholder of the declared format; "" for none.
        has_media: True if the sample names pictures or videos.
    Raises:
        SampleError: a turn has a placeholder of another format, or one of a region that the entry names.
    """
    if isinstance(sample.entry, Mapping) and sample.entry.get("objects"):
        sign = next((sign for sign in REGIONS if any(sign in text for _, text in turns)), None)
        if sign is not None:
            raise sample.error(
                f"its text has {sign}, which stands for a region in `objects`, and `objects` is not read",
                "unread_key",
                "Write phrases and coordinates into the text",
            )
    is_conversation = isinstance(sample.entry, Mapping) and "conversations" in sample.entry
    for number, (role, text) in enumerate(turns):
        if "<" not in text:
            continue
        for match in ALL.finditer(text):
            sign = match[0]
            if sign == placeholder or (placeholder == "<img>" and sign.startswith("<img>")):
                continue
            is_tag = sign.lower().startswith("<img>")
            if role == "assistant" or not (has_media or is_tag or _at_edge(text, match.start(), match.end())):
                sample.notes.add(LITERAL)
                continue
            medium = next(
                (name for pattern, name in OTHERS.items() if re.fullmatch(pattern, sign, re.IGNORECASE)), None
            )
            if medium is not None:
                raise sample.error(
                    f"turn {number} has {sign}, and {medium} is not read here",
                    "foreign_placeholder",
                    "Leave the sample out" + _or_text(placeholder, has_media),
                )
            writer = next(name for pattern, name in PICTURES.items() if re.fullmatch(pattern, sign, re.IGNORECASE))
            raise sample.error(
                f"turn {number} has {sign}, a placeholder of {writer}; the declared format is {format_name}"
                + (f", which has {placeholder}" if placeholder else ""),
                "foreign_placeholder",
                _remedy(writer, is_conversation, placeholder) + _or_text(placeholder, has_media),
            )


def _remedy(writer: str, is_conversation: bool, placeholder: str) -> str:
    """Return the advice about a placeholder.

    Args:
        writer: format or tool that writes it.
        is_conversation: True if the entry has `conversations`, which the formats with placeholders read.
        placeholder: placeholder of the declared format; "" for none.
    """
    if writer.startswith(FORMAT) and is_conversation:
        return "Correct `format`"
    if placeholder == "<img>":
        return "Write <img>path</img> in its place"
    if not placeholder:
        return "Remove it: the pictures of a row stand in front of its text"
    name = " and name the picture in `images`" if writer == f"{FORMAT} qwen_vl" else ""
    return f"Write {placeholder} in its place{name}"


def _or_text(placeholder: str, has_media: bool) -> str:
    if has_media or placeholder in ("", "<img>"):
        return ""
    return ", or declare the placeholders of rows without pictures as text (`literal_placeholders: true`)"


def _at_edge(text: str, start: int, stop: int) -> bool:
    """Return True if text[start:stop] begins or ends a line, apart from white space."""
    before, after = text[:start].rpartition("\n")[2], text[stop:].partition("\n")[0]
    return not before.strip() or not after.strip()
