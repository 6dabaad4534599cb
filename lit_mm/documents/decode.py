"""Decodes image files to upright RGB, or raises an error that names the file. Runs in the workers.

libjpeg-turbo decodes JPEG directly (simplejpeg: twice as fast as Pillow, bit-equal with its default DCT); Pillow
decodes everything else, CMYK included. Sizes come from headers; no pixel is decoded before the header passes the
checks. If half of a JPEG's size or less suffices, it is decoded at 1/2, 1/4 or 1/8 from the low frequencies of its
blocks.
"""

from __future__ import annotations

import io
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import simplejpeg
from PIL import Image

from lit_mm.errors import UserError

if TYPE_CHECKING:  # headers are read without torch
    from torch import Tensor

LIMIT_PIXELS = 1024**3 // 4 // 3  # 89 megapixels, where Pillow begins to warn: 256 MB of RGB
BYTES = 3  # bytes of an RGB pixel, which `limit_pixels` allows for each pixel
WEBP_CANVASES = 8  # further bytes per pixel in Pillow's WebP decoder: two frames of an animation, with alpha
MOST_SCANS = 200  # scans of a progressive JPEG; encoders write about ten, and each takes the time of a whole image
SCAN = b"\xff\xda"  # begins a scan; inside of one every 0xff is followed by 0 or by a restart marker
# No EPS, because reading it runs a program. JPEG includes MPO, several pictures of a phone; the first is taken.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000", "ICO")
ORIENTATION = 0x0112  # EXIF tag; the values 5 to 8 exchange height and width
ICON = b"\0\0\1\0"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Errors of Pillow's readers over damaged bytes. Beside OSError, a broken PNG raises SyntaxError, a text chunk that
# grows too large ValueError, and a broken directory of a TIFF any of the others.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    AttributeError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
HEAD = 512  # bytes of a file that tell what it is
# Brands of the container of MP4 -> what such a file is, and what to do
BRANDS = {
    (b"avif", b"avis"): "it is a damaged AVIF. Fetch it again",
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"): "it is a HEIC photo. Convert it to JPEG",
    (
        b"isom",
        b"iso2",
        b"iso4",
        b"iso5",
        b"mp41",
        b"mp42",
        b"avc1",
        b"M4V ",
        b"qt  ",
    ): "it is a video. Take a frame of it",
}
# First bytes of files that are often taken for images, in lower case -> what they are, and what to do
STRANGERS = {
    b"<!doctype html": "it is a web page, as a failed download leaves it. Fetch it again",
    b"<html": "it is a web page, as a failed download leaves it. Fetch it again",
    b"<?xml": "it is XML text, as a failed download leaves it. Fetch it again",
    b"{": "it is JSON text, as a failed download leaves it. Fetch it again",
    b"version https://git-lfs": "it is a pointer of Git LFS. Fetch the file itself by `git lfs pull`",
    b"%pdf": "it is a PDF. Render its pages to images",
    b"%!ps": "it is PostScript. Render it to an image",
    b"8bps": "it is a Photoshop file. Convert it to PNG",
    b"\xff\x0a": "it is a JPEG XL. Convert it to JPEG or PNG",
    b"\x1ae\xdf\xa3": "it is a video. Take a frame of it",
    b"pk\x03\x04": "it is a zip archive. Unpack it",
    b"\x1f\x8b": "it is compressed by gzip. Unpack it",
}
UNPARSED = (SyntaxError, ValueError, struct.error)  # errors of Pillow over damaged EXIF
# libjpeg's warnings over missing pixels, which it fills with grey; Pillow does so without a warning. A file that was
# cut short and then closed by an end marker gives the first.
HALVES = ("premature end of data segment", "instead of RST", "bad Huffman code")

# `limit_pixels` refuses by error what Pillow would only warn of
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class PictureError(UserError):
    """An image cannot be decoded: it is missing, not an image, damaged, too large, or has no agreed value range."""


class TooManyPixels(PictureError):
    """An image would take more memory or time to decode than is allowed."""


def decode(
    data: bytes | Path,
    *,
    at_least: tuple[int, int] | None = None,
    promised: tuple[int, int] | None = None,
    limit_pixels: int = LIMIT_PIXELS,
    name: str = "",
) -> Tensor:
    """Decode one image to [3, H, W] uint8 RGB (strided as H x W x 3, the order in which decoders write).

    The image is turned upright by its EXIF orientation. Alpha, also in a palette, is composited on white. An animation
    yields its first frame. 16-bit grey is scaled to 8 bits; 16-bit RGB keeps its high byte, as in Pillow.

    Args:
        data: the file's bytes, or its path.
        at_least: smallest sufficient (height, width) of the upright image, pixels. A JPEG is decoded at the smallest of
            1, 1/2, 1/4 or 1/8 of its size (rounded up) that suffices; other formats are decoded whole. None for the
            whole image.
        promised: (height, width) of the whole upright image in the metadata, pixels; an image of another size is
            refused. None for no check.
        limit_pixels: limit on decoding memory, in pixels of RGB; a larger image is refused before it is decoded. Alpha
            and a decoder's canvases count (see `pixel_bytes`). Pillow's own limit, twice the default, applies too.
        name: name of an image given as bytes in errors, such as "shard-03.tar: 0017.jpg".
    Raises:
        PictureError: the image is missing, not an image, truncated (also where libjpeg would fill the missing part with
            grey) or damaged, not of the size that was promised, or holds 32-bit values.
        TooManyPixels: it takes more memory than `limit_pixels` allows, or is a JPEG of more than 200 scans.
    """
    import torch

    name = _name(data, name)
    if isinstance(data, Path):
        with _reading(name), _open(data) as file:
            data = file.read()
    with _reading(name):
        _check_icon(io.BytesIO(data), limit_pixels, name)
    with _reading(name, data[:HEAD]), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check(image, limit_pixels, name)
        if image.format in ("JPEG", "MPO") and (scans := data.count(SCAN)) > MOST_SCANS:
            raise TooManyPixels(
                f"the JPEG {name!r} has {scans} scans, at most {MOST_SCANS} are decoded. Write it anew, or leave it out"
            )
        turn = _orientation(image, io.BytesIO(data))
        whole = image.size if turn >= 5 else image.size[::-1]
        if promised is not None and whole != tuple(promised):
            raise PictureError(
                f"the image {name!r} is {whole[1]} x {whole[0]} pixels, its metadata says {promised[1]} x "
                f"{promised[0]}. Rebuild the index of the data set"
            )
        least = at_least if at_least is None or turn < 5 else at_least[::-1]  # as it is stored
        pixels = None
        if image.format in ("JPEG", "MPO"):
            colours = "RGB" if image.mode in ("RGB", "L") else image.mode
            is_decodable = colours in ("RGB", "CMYK")
            pixels = _jpeg(data, image.size[::-1], least, colours, name) if is_decodable else None
        if pixels is None or pixels.shape[2] != 3:  # Pillow knows the inks of a CMYK file
            pixels = _rgb(image)
    return torch.from_numpy(_upright(pixels, turn)).permute(2, 0, 1)


def read_header(data: bytes | Path | BinaryIO, *, limit_pixels: int = LIMIT_PIXELS, name: str = "") -> tuple[int, int]:
    """Read (height, width) of the upright image, pixels, from its header. No pixel is decoded.

    Args:
        data: the file's bytes, its path, or the file opened for reading bytes (seekable).
        limit_pixels, name: as for `decode`.
    Raises:
        PictureError: the header alone shows that `decode` must fail.
    """
    name = _name(data, name)
    with _reading(name):
        stream = _open(data) if isinstance(data, Path) else io.BytesIO(data) if isinstance(data, bytes) else data
        try:
            _check_icon(stream, limit_pixels, name)
            head = stream.read(HEAD)
            stream.seek(0)
            with _reading(name, head), Image.open(stream, formats=FORMATS) as image:
                _check(image, limit_pixels, name)
                width, height = image.size
                return (width, height) if _orientation(image, stream) >= 5 else (height, width)
        finally:
            if stream is not data:
                stream.close()


def _open(path: Path) -> BinaryIO:
    """Open the file to read bytes. A pipe or a device, which could block for ever, is refused."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise PictureError(f"{str(path)!r} is a pipe, a socket or a device and not an image file")
    return path.open("rb")


def _name(data: bytes | Path | BinaryIO, name: str) -> str:
    return name or (str(data) if isinstance(data, Path) else getattr(data, "name", None) or "an image given as bytes")


@contextmanager
def _reading(name: str, head: bytes = b"") -> Iterator[None]:
    """Turn the errors of a reader into a PictureError about this image.

    Args:
        head: first bytes of the file.
    """
    try:
        yield
    except PictureError:
        raise
    except IsADirectoryError as error:
        raise PictureError(f"{name!r} is a folder and not an image. Name a file in it") from error
    except FileNotFoundError as error:
        raise PictureError(f"there is no image {name!r}. Is the path relative to another folder?") from error
    except Image.UnidentifiedImageError as error:
        kind = kind_of(head) or f"it begins like none of {', '.join(FORMATS)}. Is it named wrongly? Replace it"
        raise PictureError(f"{name!r} is not an image that can be read: {kind}, or leave it out") from error
    except Image.DecompressionBombError as error:
        raise PictureError(
            f"the image {name!r} is too large to decode ({error}). Shrink it, or leave it out"
        ) from error
    except UNREADABLE as error:
        raise PictureError(f"the image {name!r} is damaged ({error}). Replace the file, or leave it out") from error


def kind_of(head: bytes) -> str:
    """Return what a file without an image is, and what to do; "" if its first bytes do not tell.

    Args:
        head: first bytes of the file, a few hundred.
    """
    if not head:
        return "it is empty. Fetch it again"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in text:
        return "it is an SVG drawing. Convert it to PNG"
    if head[4:8] == b"ftyp":
        return next((kind for brands, kind in BRANDS.items() if head[8:12] in brands), "")
    return next((kind for mark, kind in STRANGERS.items() if text.startswith(mark)), "")


def pixel_bytes(image: Image.Image) -> int:
    """Return the bytes that each pixel of an opened image takes while it is decoded.

    RGB takes three, alpha one more, and a WebP eight more for the canvases of the decoder. So the default limit of
    89 megapixels of RGB is a limit of 67 megapixels with alpha, and of 24 in a WebP.
    """
    has_four = image.has_transparency_data or image.mode == "CMYK"
    return BYTES + has_four + (WEBP_CANVASES if image.format == "WEBP" else 0)


def _check_icon(stream: BinaryIO, limit_pixels: int, name: str) -> None:
    """Refuse an ICO that contains an image above the limit. Pillow decodes it on opening the file, and trusts the
    sizes in its directory, which may be false. Other files are not read further; the stream is rewound."""
    if stream.read(len(ICON)) == ICON:
        (count,) = struct.unpack("<H", stream.read(2))
        directory = stream.read(16 * count)
        for entry in range(0, len(directory) - 15, 16):
            stream.seek(struct.unpack_from("<I", directory, entry + 12)[0])
            head = stream.read(24).ljust(24, b"\0")
            if head.startswith(PNG_SIGNATURE):
                width, height = struct.unpack_from(">II", head, 16)
            else:  # a bitmap, with a mask below it
                width, height = (abs(side) for side in struct.unpack_from("<ii", head, 4))
            if width * height * (BYTES + 1) > BYTES * limit_pixels:
                raise TooManyPixels(
                    f"the ICO {name!r} holds an image of {width} x {height} = {width * height} pixels, at most "
                    f"{BYTES * limit_pixels // (BYTES + 1)} are decoded. Shrink it, or raise `limit_pixels`"
                )
    stream.seek(0)


def _check(image: Image.Image, limit_pixels: int, name: str) -> None:
    """Refuse an image if its header shows that it is too large or has no agreed value range."""
    width, height = image.size
    most = BYTES * limit_pixels // pixel_bytes(image)
    if width * height > most:
        raise TooManyPixels(
            f"the image {name!r} has {width} x {height} = {width * height} pixels, at most {most} of its kind are "
            f"decoded, {pixel_bytes(image)} bytes each. Shrink it, or raise `limit_pixels`"
        )
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):  # 16-bit PGM arrives as I, 0 to 65535
        raise PictureError(f"the image {name!r} holds 32-bit values without an agreed range. Convert it to 8 bits")


def _orientation(image: Image.Image, stream: BinaryIO) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if there is none or Pillow turns the image itself.

    EXIF that cannot be parsed is ignored, because the pixels are good; Pillow (for JPEG) and browsers do the same.
    Pillow's own look-up decodes a whole PNG, because EXIF may follow the pixels; this function walks its chunks.
    """
    if image.format == "TIFF":
        return 1
    try:
        exif = Image.Image.getexif(image)
        if image.format == "PNG" and ORIENTATION not in exif:
            late = _png_exif(stream)
            if late is not None:
                exif.load(b"Exif\x00\x00" + late)
        turn = exif.get(ORIENTATION, 1)
    except UNPARSED:
        return 1
    return turn if turn in range(1, 9) else 1


def _png_exif(stream: BinaryIO) -> bytes | None:
    """Return the eXIf chunk of a PNG, wherever it is. Skips the pixels and restores the stream position."""
    before = stream.tell()
    try:
        stream.seek(len(PNG_SIGNATURE))
        while len(head := stream.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"eXIf":
                return stream.read(length)
            stream.seek(length + 4, io.SEEK_CUR)  # and the checksum
        return None
    finally:
        stream.seek(before)


def reductions(height: int, width: int) -> Iterator[tuple[int, int, int]]:
    """List (divisor, height, width) of the sizes at which `decode` may decode a JPEG, the smallest last.

    Only the scales of libjpeg with a fast inverse transform are used, of its sixteen: 7/8 to 5/8 take longer than 1.
    """
    return ((by, -(-height // by), -(-width // by)) for by in (1, 2, 4, 8))


def _jpeg(
    data: bytes, size: tuple[int, int], at_least: tuple[int, int] | None, colours: str, name: str
) -> np.ndarray | None:
    """Decode a JPEG to [H, W, 3 or 4] uint8 in stored orientation; None if libjpeg-turbo warns.

    Files with a warning (stray bytes between markers, odd subsampling) go to Pillow, which distinguishes harmless from
    truncated files.

    Args:
        size: (height, width) in the header.
        colours: "RGB" or "CMYK".
        name: name of the image in errors.
    Raises:
        PictureError: a part of the pixels is missing.
    """
    try:
        if at_least is None:
            return simplejpeg.decode_jpeg(data, colorspace=colours)
        whole, *smaller = reductions(*size)
        by, height, width = max(
            [
                whole,
                *(reduction for reduction in smaller if reduction[1] >= at_least[0] and reduction[2] >= at_least[1]),
            ]
        )
        return simplejpeg.decode_jpeg(data, colorspace=colours, min_height=height, min_width=width, min_factor=by)
    except ValueError as error:
        if any(warning in str(error) for warning in HALVES):
            raise PictureError(
                f"the image {name!r} is not whole: a part of its pixels is missing ({error}). Replace the file, or "
                "leave it out"
            ) from error
        return None


def _rgb(image: Image.Image) -> np.ndarray:
    """Decode to [H, W, 3] uint8 with Pillow, in stored orientation."""
    image.load()
    if image.mode.startswith("I"):  # 16 bits. Pillow's own conversion clips: nearly all would be white
        values = np.asarray(image)
        if "transparency" in image.info:
            values = np.where(values == image.info["transparency"], 65535, values)
        grey = (values / 257).round().astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _upright(pixels: np.ndarray, turn: int) -> np.ndarray:
    """Undo an EXIF orientation. [H, W, 3] -> the same, or [W, H, 3] for 5 to 8."""
    if turn == 1:
        return pixels
    if turn >= 5:  # stored lying down: rows are the picture's columns
        pixels = pixels.swapaxes(0, 1)
    if turn in (3, 4, 7, 8):  # upside down
        pixels = pixels[::-1]
    if turn in (2, 3, 6, 7):  # left and right exchanged
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
