"""Pictures inside of texts: data URIs and base64."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

DATA_URI = re.compile(r"data:(?P<kind>[\w.+-]+/[\w.+-]+)?(?P<options>(?:;[^;,]*)*),", re.IGNORECASE)
# How base64 of an image begins: JPEG, PNG, GIF, WEBP, BMP, TIFF and AVIF
BEGINNINGS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk", "SUkq", "TU0AK", "AAAA")
SHORTEST = 64  # least number of base64 characters of a picture; the smallest pictures have some more
BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]+={0,2}\s*")


def is_embedded(text: str) -> bool:
    """Return True if a text is a data URI, or base64 that begins like an image."""
    if DATA_URI.match(text):
        return True
    return len(text) >= SHORTEST and text.startswith(BEGINNINGS) and BASE64.fullmatch(text) is not None


def decode_embedded(text: str) -> bytes:
    """Decode the bytes of an embedded picture.

    Raises:
        ValueError: the data URI is not of an image, or the base64 is damaged.
    """
    uri = DATA_URI.match(text)
    if uri is None:
        return _decode(text)
    if uri["kind"] is not None and uri["kind"].partition("/")[0].lower() not in ("image", "application"):
        raise ValueError(f"it is a data URI of {uri['kind']}, not of an image")
    content = text[uri.end() :]
    return _decode(content) if ";base64" in uri["options"].lower() else unquote_to_bytes(content)


def _decode(text: str) -> bytes:
    standard = "".join(text.split()).replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(f"its base64 is damaged ({error})") from error
