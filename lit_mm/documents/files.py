"""Pictures that are stored in image files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from lit_mm.documents.decode import decode, read_header


@dataclass(frozen=True, slots=True)
class FilePicture:
    """An image file, as `lit_mm.documents.decode` sees it: upright, alpha on white, the first frame of an animation."""

    path: Path
    width: int
    height: int

    @classmethod
    def open(cls, path: str | Path) -> FilePicture:
        """Open an image file by reading its header alone.

        Raises:
            PictureError: there is no such file, or it is no image that can be decoded.
        """
        height, width = read_header(Path(path))
        return cls(Path(path), width, height)

    def pixels(self, at_least: tuple[int, int] | None = None) -> Tensor:
        """Decode to [3, H, W] uint8 RGB, smaller where `at_least` allows (see `decode`).

        Raises:
            PictureError: the file is damaged, or has changed its size.
        """
        return decode(self.path, at_least=at_least, promised=(self.height, self.width))

    def read(self) -> Image.Image:
        """Decode to an RGB Pillow image, for viewing. Raises the same errors as `pixels`."""
        return Image.fromarray(self.pixels().permute(1, 2, 0).numpy())
