"""Pictures of samples: the place of their bytes, and their sizes."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from PIL import Image

from lit_mm.documents.printable import brief
from lit_mm.documents.sources.blobs import Blob
from lit_mm.documents.sources.errors import Kind, SampleError
from lit_mm.documents.sources.paths import is_url, local_path
from lit_mm.documents.sources.sample import Sample
from lit_mm.documents.sources.storage import remote
from lit_mm.errors import UserError

if TYPE_CHECKING:  # a source can be checked without torch
    from torch import Tensor

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
LIMIT_PIXELS = 1024**3 // 4 // 3  # of one picture; more is refused, see `lit_mm.documents.decode`


@dataclass(frozen=True, slots=True)
class SourcePicture:
    """A picture of a sample.

    Attributes:
        blob: place of the bytes.
        height, width: size of the upright picture, pixels.
        where, sample_id: place and id of the sample, for errors.
        limit_pixels: largest number of pixels that is decoded.
    """

    blob: Blob
    height: int
    width: int
    where: str
    sample_id: str
    limit_pixels: int = LIMIT_PIXELS

    @property
    def path(self) -> Path:
        """The file that holds the picture; for a URL, the text behind its scheme."""
        return local_path(self.blob.path)

    def pixels(self, at_least: tuple[int, int] | None = None) -> Tensor:
        """Decode to [3, H, W] uint8 RGB, at a smaller size if `at_least` allows it (see `lit_mm.documents.decode`).

        Raises:
            SampleError: the file is missing, damaged, or too large.
        """
        from lit_mm.documents.decode import TooManyPixels, decode

        try:
            return decode(
                self.blob.read(),
                at_least=at_least,
                promised=(self.height, self.width),
                limit_pixels=self.limit_pixels,
                name=self.blob.place,
            )
        except FileNotFoundError as error:
            raise self._broken(f"there is no image {self.blob.place!r}", "missing_file") from error
        except TooManyPixels as error:
            raise self._broken(str(error), "too_many_pixels") from error
        except (OSError, UserError) as error:  # damaged, or at a URL whose file system is not installed
            raise self._broken(str(error), "unreadable_image") from error

    def read(self) -> Image.Image:
        """Decode to an RGB image. For the errors see `pixels`."""
        return Image.fromarray(self.pixels().permute(1, 2, 0).contiguous().numpy())

    def _broken(self, reason: str, kind: Kind) -> SampleError:
        return SampleError(reason, where=self.where, sample_id=self.sample_id, kind=kind)


def read_size(blob: Blob, sample: Sample, limit_pixels: int) -> tuple[int, int]:
    """Read (height, width) of an upright picture from its header, pixels.

    Raises:
        SampleError: the file is missing or no image, or the picture takes more memory than `limit_pixels` allows.
    """
    from lit_mm.documents.decode import TooManyPixels, read_header

    try:
        with blob.open() as file, remote(blob.path):
            return read_header(file, limit_pixels=limit_pixels, name=blob.place)
    except TooManyPixels as error:
        raise sample.error(str(error), "too_many_pixels") from error
    except (OSError, UserError) as error:  # a UserError: it is no image, or its URL's file system is not installed
        if not _is_missing(error):
            raise sample.error(str(error), "unreadable_image") from error
        raise sample.error(
            f"there is no image {blob.place!r}",
            "missing_file",
            _near_name(blob.path) or "Is the path relative to another folder (`images`)?",
        ) from error


def _is_missing(error: Exception) -> bool:
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return True
    return isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG


def _near_name(path: str) -> str:
    """Return the advice for a path that is a folder, a link to nothing, or nearly that of a file; "" otherwise."""
    if is_url(path):
        return ""
    if os.path.islink(path) and not os.path.exists(path):
        return f"It is a link to {brief(os.readlink(path))}, which does not exist"
    if os.path.isdir(path):
        return "It is a folder"
    if (shorter := _once(path)) is not None:
        return f"There is {shorter!r}: the folder `images` is part of the name already"
    folder, name = os.path.split(path)
    try:
        names = _names_in(folder or ".", os.stat(folder or ".").st_mtime_ns)
    except OSError:
        return ""
    near = names.get(name.lower())
    if near not in (None, name):
        return f"There is {near!r}: upper and lower case differ"
    near = names.get(unquote(name).strip().lower())
    if near is not None:
        return f"There is {near!r}: write the name as it is, without spaces around it or %-escapes"
    near = next((names[other] for ending in ENDINGS if (other := f"{_stem(name)}{ending}") in names), None)
    return "" if near is None else f"There is {near!r}: the endings differ"


def _once(path: str) -> str | None:
    """Return an existing path without the folders that a path names twice in a row; None if there is none.

    The folders of `images` are often part of the names as well: /data/coco/train2017/coco/train2017/1.jpg.
    """
    folders = path.split("/")
    for size in range(1, (len(folders) - 1) // 2 + 1):
        for start in range(len(folders) - 2 * size):
            middle = start + size
            if folders[start:middle] == folders[middle : middle + size]:
                shorter = "/".join([*folders[:middle], *folders[middle + size :]])
                if os.path.exists(shorter):
                    return shorter
    return None


def _stem(name: str) -> str:
    """Return a picture's name in lower case without its ending."""
    stem, ending = os.path.splitext(name.lower())
    return stem if ending in ENDINGS else name.lower()


@lru_cache(maxsize=8)
def _names_in(folder: str, changed_at: int) -> dict[str, str]:
    """Return lower case name -> name of the files in a folder. The cache avoids one listing per missing file."""
    return {name.lower(): name for name in os.listdir(folder)}
