"""Keys of an entry that name pictures, and misspelt or foreign keys that should have done so."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lit_mm.documents.printable import brief
from lit_mm.documents.sources.embedded import is_embedded
from lit_mm.documents.sources.sample import Sample

MEDIA = {"video": "video", "videos": "video", "audio": "audio", "audios": "audio"}  # unread key -> kind of media
PICTURES = ("image", "images")  # keys of an entry that formats of conversations read
TURN = ("from", "value", "role", "content")  # keys of a turn
# Names under which pictures are stored elsewhere, in lower case and without separators
ALIAS = re.compile(r"(?:image|img|picture|pic|photo|screenshot)s?(?:path|file|name|url|base64|data|bytes|list)?s?")
# Endings behind "image" in keys that describe a picture and do not name one
DESCRIPTIONS = frozenset(
    ("id", "ids", "size", "sizes", "width", "height", "count", "source", "type", "caption", "hash")
)
IMAGE_NAME = re.compile(r"[^\n]{1,500}\.(?:jpe?g|png|webp|gif|bmp|tiff?|avif)", re.IGNORECASE)


def check_keys(sample: Sample, read: Sequence[str], *, has_pictures: bool, remedy: str = "") -> None:
    """Refuse keys that name pictures or videos and are not read.

    Args:
        read: keys from which the format reads pictures, the usual one first.
        has_pictures: True if the sample has pictures under these keys; other keys then only describe them.
        remedy: advice about a picture under another key; "": use the first of `read`.
    Raises:
        SampleError: the sample names a video, or has no picture under `read` but one under another key.
    """
    if not isinstance(sample.entry, Mapping):
        return
    for key, value in sample.entry.items():
        if key in read or _is_empty(value):
            continue
        if (medium := MEDIA.get(str(key).lower())) is not None:
            raise sample.error(
                f"its `{key}` names {brief(value, 60)}, and {medium} is not read here",
                "unread_key",
                "Leave the sample out",
            )
        if not has_pictures and _is_meant(str(key), value, read):
            raise sample.error(
                f"its `{key}` names {brief(value, 60)} and is not read, and the sample has no picture otherwise",
                "unread_key",
                remedy or f"Write `{read[0]}`",
            )


def check_turn_keys(sample: Sample, turn: Mapping[str, Any], number: int) -> None:
    """Refuse keys of a turn that name pictures or videos, because only such keys of an entry are read.

    Raises:
        SampleError: the turn has a key of this kind.
    """
    for key, value in turn.items():
        if key in TURN or _is_empty(value):
            continue
        if str(key).lower() in MEDIA or _is_meant(str(key), value, PICTURES):
            raise sample.error(
                f"turn {number} has `{key}`, which names {brief(value, 60)} and is not read in a turn",
                "unread_key",
                "Name the pictures in `images` of the entry, and write a placeholder for each into the text",
            )


def _is_empty(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, str | list | dict | bytes) and not value)


def _is_meant(key: str, value: Any, read: Sequence[str]) -> bool:
    """Return True if a key seems to name pictures, by its name, a misspelt name, or an image's name as its value."""
    plain = re.sub(r"[\s_-]", "", key).lower()
    if ALIAS.fullmatch(plain) or plain in read:
        return True
    if plain == "id" or re.sub("^images?", "", plain) in DESCRIPTIONS or plain.removeprefix("image") in DESCRIPTIONS:
        return False
    if difflib.get_close_matches(plain, read, n=1, cutoff=0.8):
        return True
    first = value[0] if isinstance(value, list) else value
    if isinstance(first, Mapping):  # an image of a Hugging Face table
        return first.keys() == {"bytes", "path"}
    return isinstance(first, str) and (IMAGE_NAME.fullmatch(first) is not None or is_embedded(first))
