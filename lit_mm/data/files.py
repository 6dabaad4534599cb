"""Pictures in files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from lit_mm.errors import UserError


@dataclass(frozen=True, slots=True)
class FilePicture:
    """An image file. Turned upright by its EXIF orientation; alpha is laid on white."""

    path: Path
    width: int
    height: int

    @classmethod
    def open(cls, path: str | Path) -> FilePicture:
        """Read the header alone.

        Raises:
            UserError: there is no such file, or it is not an image.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(f"there is no image {str(path)!r}. Is the path relative to another folder?")
        try:
            with Image.open(path) as image:
                width, height = image.size
                if image.getexif().get(0x0112, 1) >= 5:  # orientations 5 to 8 lie on their side
                    width, height = height, width
        except (UnidentifiedImageError, OSError) as error:
            raise UserError(
                f"{str(path)!r} is not an image that can be read ({error}). Give a PNG or JPEG file"
            ) from error
        return cls(path, width, height)

    def read(self) -> Image.Image:
        """Decode. RGB.

        Raises:
            UserError: the file is damaged.
        """
        try:
            with Image.open(self.path) as image:
                upright = ImageOps.exif_transpose(image)
                if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
                    upright = upright.convert("RGBA")
                    upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
                return upright.convert("RGB")
        except (OSError, SyntaxError) as error:  # Pillow reports a broken PNG as SyntaxError
            raise UserError(f"the image {str(self.path)!r} is damaged ({error}). Replace the file") from error
