"""Published copies of pictures say nothing about where and with what they were taken."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lit_mm.composition.metadata import ORIENTATION, without_metadata

SECRET = b"Elm Street 7"
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)


def picture(kind: str, turn: int = 1, **options: Any) -> bytes:
    """An image file whose EXIF has an address and an orientation; a comment or text, and a trailer, have it as well."""
    exif = Image.Exif()
    exif[0x010E], exif[ORIENTATION] = SECRET.decode(), turn
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind, exif=exif, **options)
    return file.getvalue()


def text() -> PngInfo:
    info = PngInfo()
    info.add_text("place", SECRET.decode())
    return info


@pytest.mark.parametrize(
    "content",
    [
        picture("JPEG", comment=SECRET),
        picture("JPEG", progressive=True, quality=95, restart_marker_blocks=1),
        picture("JPEG", icc_profile=b"a profile") + b"\xff\xd8\xff\xe1" + SECRET,
        picture("PNG", pnginfo=text()) + SECRET,
        picture("WEBP", xmp=SECRET, lossless=True),
        picture("WEBP"),
    ],
    ids=["jpeg", "progressive", "trailer", "png", "webp", "webp lossy"],
)
def test_exif_comments_and_trailers_are_dropped_and_pixels_are_the_same(content: bytes) -> None:
    assert SECRET in content
    published = without_metadata(content)
    assert published is not None and SECRET not in published
    before, after = (Image.open(io.BytesIO(each)) for each in (content, published))
    assert np.array_equal(np.asarray(before), np.asarray(after))
    assert not after.getexif()
    assert after.info.get("icc_profile") == before.info.get("icc_profile")
    assert without_metadata(published) == published


def test_the_orientation_of_a_jpeg_stays_and_others_are_left_to_be_turned() -> None:
    published = without_metadata(picture("JPEG", turn=6))
    assert published is not None and SECRET not in published
    assert dict(Image.open(io.BytesIO(published)).getexif()) == {ORIENTATION: 6}
    assert without_metadata(picture("PNG", turn=6)) is without_metadata(picture("WEBP", turn=6)) is None


def test_files_without_exif_keep_every_byte_and_damaged_ones_are_refused() -> None:
    for kind in ("GIF", "BMP", "PNG"):
        file = io.BytesIO()
        Image.fromarray(PIXELS).save(file, kind)
        assert without_metadata(file.getvalue()) == file.getvalue()
    for kind in ("JPEG", "PNG"):
        content = picture(kind)
        assert all(without_metadata(content[:size]) is None for size in range(0, len(content) - 1, 37))
    assert without_metadata(b"no image") is None
