"""The tiling of Fuyu: one view of the image at its own size, up to a canvas, padded to whole patches."""

from __future__ import annotations

from dataclasses import dataclass

from lit_mm.tiling.plan import TilePlan, Tiling, View, require_pixels


def plan_canvas(height: int, width: int, *, canvas: tuple[int, int], patch: int) -> TilePlan:
    """Plan one view of the whole image with its aspect ratio, at its own size if it fits the canvas.

    A larger image is shrunk until both sides fit, bilinearly; its sides are truncated to whole pixels, at least 1. No
    image is enlarged. Padding at the bottom and at the right completes the last patches.

    Example: 480 x 640 keeps its size and is padded to 480 x 660; 3840 x 2160 becomes 1080 x 607, padded to 1080 x 630.

    Args:
        height, width: source image, pixels.
        canvas: (height, width) of the largest view, pixels.
        patch: side of a patch, pixels.
    Raises:
        UserError: the image is empty.
    Source: transformers' FuyuImageProcessor, with Fuyu-8B's canvas of 1080 x 1920 and patches of 30. The release pads
        to the whole canvas and crops to whole patches afterwards, with the same result. A ratio that makes a side
        vanish fails there.
    """
    require_pixels("plan_canvas", height, width)
    resize = height, width
    if height > canvas[0] or width > canvas[1]:
        scale = min(canvas[0] / height, canvas[1] / width)
        resize = max(1, int(height * scale)), max(1, int(width * scale))
    rows, columns = (-(-side // patch) for side in resize)
    size = min(rows * patch, canvas[0]), min(columns * patch, canvas[1])
    view = View(resize, size, (0, 0), (0, 0, *size), size, resample="bilinear")
    return TilePlan((height, width), (1, 1), (view,))


@dataclass(frozen=True)
class Canvas(Tiling):
    """Gives one view of the whole image at its own size, shrunk to a canvas if it is larger. See `plan_canvas`.

    Args:
        height, width: size of the largest view, pixels, a multiple of the patch.
        patch: side of a patch of the vision encoder, pixels.
    """

    height: int = 1080
    width: int = 1920
    patch: int = 30

    def __call__(self, height: int, width: int) -> TilePlan:
        return plan_canvas(height, width, canvas=(self.height, self.width), patch=self.patch)
