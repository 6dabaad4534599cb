"""Image files without the data about their making: EXIF with places and devices, XMP, comments."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image, UnidentifiedImageError

ORIENTATION = 0x0112  # EXIF tag; 1 is upright
PNG = b"\x89PNG\r\n\x1a\n"
# Chunks of a PNG that change how it looks, beside the critical ones
PNG_LOOKS = frozenset((b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP", b"sBIT", b"bKGD", b"pHYs"))
PNG_FRAMES = frozenset((b"acTL", b"fcTL", b"fdAT"))  # of an animation
SOI, EOI, SOS = b"\xff\xd8", 0xD9, 0xDA  # markers of a JPEG
ALONE = frozenset((0x01, *range(0xD0, 0xD8)))  # markers without a segment
WEBP_FLAGS = 0x08 | 0x04  # bits of VP8X: the file has EXIF, has XMP


def without_metadata(content: bytes) -> bytes | None:
    """Return an image file without EXIF, XMP and comments. Pixels, colours and frames are the same bytes.

    The orientation of a JPEG stays, because its pixels are not turned. GIF and BMP have no EXIF and stay as they are.

    Returns:
        The content; None for a damaged file, another format, or a PNG or WebP that only its EXIF turns upright.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            kind, turn = image.format, image.getexif().get(ORIENTATION, 1)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, struct.error):
        return None
    if kind in ("JPEG", "MPO"):
        return _jpeg(content, turn)
    if kind in ("GIF", "BMP"):
        return content
    if turn != 1:
        return None
    return {"PNG": _png, "WEBP": _webp}.get(str(kind), lambda content: None)(content)


def _jpeg(content: bytes, turn: int) -> bytes | None:
    """Keep the segments that decoding needs, the colour profile, and an orientation other than upright."""
    output, at = bytearray(SOI), len(SOI)
    if turn in range(2, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = turn
        payload = exif.tobytes()
        output += b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload
    while at + 4 <= len(content) or content[at : at + 2] == bytes((0xFF, EOI)):
        marker = content[at + 1]
        if content[at] != 0xFF:
            return None
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == EOI:  # what follows is no part of the image, such as further ones with EXIF of their own
            return bytes(output + content[at : at + 2])
        size = 0 if marker in ALONE else int.from_bytes(content[at + 2 : at + 4], "big")
        segment = content[at : at + 2 + size]
        if len(segment) < 2 + size or (size < 2 and marker not in ALONE):
            return None
        if _decodes(marker, segment[4:]):
            output += segment
        at += len(segment)
        if marker == SOS:
            end = _end_of_scan(content, at)
            output += content[at:end]
            at = end
    return None


def _decodes(marker: int, payload: bytes) -> bool:
    """Return True for a segment other than those of applications and comments; JFIF, a profile and Adobe's count."""
    if marker == 0xE2:
        return payload.startswith(b"ICC_PROFILE\0")
    return marker in (0xE0, 0xEE) or not (0xE0 <= marker <= 0xEF or marker == 0xFE)


def _end_of_scan(content: bytes, at: int) -> int:
    """Return the place of the marker that follows the data of a scan; the end of the file if there is none."""
    while True:
        at = content.find(b"\xff", at)
        if at < 0 or at + 1 >= len(content):
            return len(content)
        if content[at + 1] != 0 and content[at + 1] not in ALONE:
            return at
        at += 2


def _png(content: bytes) -> bytes | None:
    output, at = bytearray(PNG), len(PNG)
    while at + 12 <= len(content):
        size, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        chunk = content[at : at + 12 + size]
        if len(chunk) < 12 + size or zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
            return None
        if kind[:1].isupper() or kind in PNG_LOOKS | PNG_FRAMES:
            output += chunk
        if kind == b"IEND":
            return bytes(output)
        at += len(chunk)
    return None


def _webp(content: bytes) -> bytes | None:
    output, at = bytearray(), 12  # behind RIFF, the size and WEBP
    stop = min(len(content), 8 + int.from_bytes(content[4:8], "little"))
    while at + 8 <= stop:
        kind, size = content[at : at + 4], int.from_bytes(content[at + 4 : at + 8], "little")
        chunk = bytearray(content[at : at + 8 + size + size % 2])
        if len(chunk) < 8 + size:
            return None
        if kind == b"VP8X":
            chunk[8] &= ~WEBP_FLAGS & 0xFF
        if kind not in (b"EXIF", b"XMP "):
            output += chunk
        at += len(chunk)
    return b"RIFF" + struct.pack("<I", len(output) + 4) + b"WEBP" + bytes(output)
