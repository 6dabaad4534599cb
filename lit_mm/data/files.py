"""Pictures in files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from lit_mm.errors import UserError

# Pillow reports a broken PNG as SyntaxError, and refuses to decode what looks like an attack
UNREADABLE = (OSError, SyntaxError, Image.DecompressionBombError)


@dataclass(frozen=True, slots=True)
class FilePicture:
    """An image file. Turned upright by its EXIF orientation; alpha is laid on white; of an animation the first frame;
    16-bit grey is scaled to 8 bits."""

    path: Path
    width: int
    height: int

    @classmethod
    def open(cls, path: str | Path) -> FilePicture:
        """Read the header alone.

        Raises:
            UserError: there is no such file, it is not an image, or its values have no agreed range (32-bit TIFF).
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(f"there is no image {str(path)!r}. Is the path relative to another folder?")
        try:
            with Image.open(path) as image:
                width, height = image.size
                if image.getexif().get(0x0112, 1) >= 5:  # orientations 5 to 8 lie on their side
                    width, height = height, width
                mode = image.mode
        except UNREADABLE as error:
            raise UserError(
                f"{str(path)!r} is not an image that can be read ({error}). Give a PNG or JPEG file"
            ) from error
        if mode in ("I", "F"):
            raise UserError(
                f"{str(path)!r} holds 32-bit values, whose black and white nobody knows. Convert it to 8 bits"
            )
        return cls(path, width, height)

    def read(self) -> Image.Image:
        """Decode. RGB.

        Raises:
            UserError: the file is damaged.
        """
        try:
            with Image.open(self.path) as image:
                upright = ImageOps.exif_transpose(image)
                if upright.mode.startswith("I;16"):  # Pillow's own conversion clips: nearly all would be white
                    return Image.fromarray((np.asarray(upright) / 257).round().astype(np.uint8)).convert("RGB")
                if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
                    upright = upright.convert("RGBA")
                    upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
                return upright.convert("RGB")
        except UNREADABLE as error:
            raise UserError(f"the image {str(self.path)!r} is damaged ({error}). Replace the file") from error
