"""Cells, the values that stand for pictures in an entry: a name, bytes, base64, or an object with one of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any
from unicodedata import normalize

from lit_mm.documents.printable import brief
from lit_mm.documents.sources.blobs import Blob, BytesBlob, FileBlob
from lit_mm.documents.sources.boundary import Boundary
from lit_mm.documents.sources.embedded import decode_embedded, is_embedded
from lit_mm.documents.sources.listed import list_of
from lit_mm.documents.sources.paths import is_url, join
from lit_mm.documents.sources.sample import Sample

# Keys of an object that stands for a picture; the first filled one counts. Hugging Face's image columns have `bytes`
# and `path`, MMC4 has `image_base64` and `image_name`.
KEYS = ("bytes", "image_base64", "path", "image_name", "file_name", "image", "url", "image_url")


def cells_in(value: Any) -> Iterator[Any]:
    """Return the cells of a field, which holds a list of cells (or its JSON text), one cell, or nothing."""
    value = list_of(value)
    if value is None or value == "":
        return iter(())
    return iter(value) if isinstance(value, list | tuple) else iter((value,))


def is_gap(cell: Any) -> bool:
    """Return True if a cell that should hold a picture is empty."""
    return cell is None or cell == "" or (isinstance(cell, Mapping) and not any(cell.get(key) for key in KEYS))


def blob_of(cell: Any, sample: Sample, folder: str, boundary: Boundary, label: str) -> Blob:
    """Return the place of the bytes that a cell names or holds.

    Args:
        cell: a path or a URL, bytes, a data URI, base64, or an object with one of them.
        folder: folder or URL that relative names start from.
        boundary: places that the cell may name outside of `folder`.
        label: name of the cell in errors.
    Raises:
        SampleError: the cell is none of these, is a name that no file can have or may not be named, or holds damaged
            base64.
    """
    if isinstance(cell, Mapping):
        filled = next((cell[key] for key in KEYS if cell.get(key)), None)
        if filled is None:
            raise sample.error(
                f"{label} holds neither bytes nor a path, got {brief(cell)}", "bad_entry", "Name its file as `path`"
            )
        return blob_of(filled, sample, folder, boundary, label)
    if isinstance(cell, bytes):
        return BytesBlob(cell, sample.path, f"{sample.where.rpartition(':')[2]}, {label}")
    if not isinstance(cell, str) or not cell:
        raise sample.error(f"the name of an image is text, got {brief(cell)}", "bad_entry", "Write its path")
    if is_embedded(cell):
        try:
            content = decode_embedded(cell)
        except ValueError as error:
            raise sample.error(f"{label} holds a picture as text, and {error}", "unreadable_image") from error
        return BytesBlob(content, sample.path, f"{sample.where.rpartition(':')[2]}, {label}")
    path = _path(cell, sample, folder)
    refusal = boundary.refusal(path, folder)
    if refusal is not None:
        reason, remedy = refusal
        raise sample.error(reason, "outside_folder", remedy)
    return FileBlob(path)


def _path(name: str, sample: Sample, folder: str) -> str:
    """Return the path that a picture's name stands for.

    Lists that were written on Windows separate folders by a backslash. It is read as a slash if that file exists.
    Systems also differ in the code points of an accented letter; the other form is read if only that file exists.

    Raises:
        SampleError: no file can have that name.
    """
    try:
        os.fsencode(name)
    except UnicodeEncodeError as error:
        raise sample.error(
            f"the name of an image {brief(name)} holds half a character (a lone surrogate)", "bad_entry", "Correct it"
        ) from error
    if "\0" in name:
        raise sample.error(f"the name of an image {brief(name)} holds a NUL character", "bad_entry", "Correct it")
    path = join(folder, name)
    if ("\\" in name or not name.isascii()) and not is_url(path) and not os.path.exists(path):
        forward = name.replace("\\", "/")
        others = (join(folder, text) for text in (forward, *(normalize(form, forward) for form in ("NFC", "NFD"))))
        return next((other for other in others if os.path.exists(other)), path)
    return path
