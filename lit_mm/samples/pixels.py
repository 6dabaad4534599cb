"""Resizing, padding, cropping and normalising the pixels of a view. It runs in the workers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lit_mm.tiling.plan import Size, View

SPARE = 2.0  # `spare` of a `Normalise`


@dataclass(frozen=True, slots=True)
class Normalise:
    """Settings for the pixel values of views.

    Attributes:
        mean, std: mean and standard deviation per channel, of values in [0, 1].
        fill: padding colour, 0 to 255 per channel.
        backend: "torch" resizes uint8 with antialiased bicubic (2.7 times faster); "pillow" is bit-equal to the
            authors' preprocessors (mean difference 0.04 of 255).
        spare: factor, in each direction, by which a decoded image may exceed its first resize; a larger JPEG is decoded
            at a fraction of its size (see `lit_mm.documents.decode`). With 2, views of such JPEGs differ from those of
            the whole image by 0.2 to 0.8 of 255 on average (1.1 at an eighth; photographs). None decodes every image
            whole, as "pillow" always does.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fill: tuple[int, int, int] = (255, 255, 255)
    backend: Literal["torch", "pillow"] = "torch"
    spare: float | None = SPARE

    def least(self, views: Sequence[View]) -> Size | None:
        """Return the least (height, width) at which to decode an image for these views; None means its own size."""
        if self.spare is None or self.backend == "pillow":
            return None
        heights, widths = zip(*(view.resize for view in views), strict=True)
        return math.ceil(self.spare * max(heights)), math.ceil(self.spare * max(widths))

    def scaling(self) -> Tensor:
        """[2, 3, 1, 1]: gain and shift of each channel, which `normalised` takes."""
        std = torch.tensor(self.std).view(3, 1, 1)
        return torch.stack([1 / (255 * std), -torch.tensor(self.mean).view(3, 1, 1) / std])


def normalised(pixels: Tensor, scaling: Tensor) -> Tensor:
    """(x / 255 - mean) / std of uint8 pixels [..., 3, H, W] as a product and a sum, in a third of the time.

    Pixels that are normalised already are returned as they are. The bits are the same on every device.

    Args:
        scaling: [2, 3, 1, 1], see `Normalise.scaling`.
    """
    return pixels.float().mul_(scaling[0]).add_(scaling[1]) if pixels.dtype == torch.uint8 else pixels


def cut_views(image: Tensor, views: Sequence[View], normalise: Normalise) -> list[Tensor]:
    """Cut a [3, H, W] uint8 image, at least of size `normalise.least`, into one [3, h, w] float32 tensor per view."""
    scaling = normalise.scaling()
    return [normalised(pixels, scaling) for pixels in crop_views(image, views, normalise)]


def crop_views(image: Tensor, views: Sequence[View], normalise: Normalise) -> list[Tensor]:
    """Cut an image into one [3, h, w] uint8 tensor per view, before normalisation; see `cut_views`.

    A view that is shrunk without antialiasing is returned as normalised float32, because it is shrunk after the
    normalisation.
    """
    resized: dict[tuple[Size, str], Tensor] = {}
    cut = []
    for view in views:
        whole = view.resize, view.resample
        if whole not in resized:
            resized[whole] = resize(image, view.resize, normalise.backend, view.resample)
        if view.antialias and view.box[2:] != view.size:
            pixels = resize_box(resized[whole], view, normalise)
        else:
            pixels = _crop(resized[whole], view, normalise.fill)
        pixels = pixels.contiguous()  # decoders write H x W x 3; one byte a value is cheap to reorder
        if pixels.shape[1:] != view.size:
            pixels = shrink(normalised(pixels, normalise.scaling()), view.size)
        cut.append(pixels)
    return cut


def resize(image: Tensor, size: Size, backend: str, resample: str = "bicubic") -> Tensor:
    """Resize [3, H, W] uint8 to [3, h, w] uint8, bicubic or bilinear, with antialiasing."""
    if tuple(image.shape[1:]) == size:
        return image
    if backend == "pillow":
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        array = np.asarray(picture.resize((size[1], size[0]), Image.Resampling[resample.upper()]))
        return torch.from_numpy(array.copy()).permute(2, 0, 1)
    return F.interpolate(image[None], size=size, mode=resample, antialias=True)[0]


def resize_box(image: Tensor, view: View, normalise: Normalise) -> Tensor:
    """Bring the view's box, padding included, to the view's size without building the padded box.

    A horizontal pass treats each row by itself and a vertical pass treats each column by itself. So the horizontal pass
    takes a band of rows at a time and resizes a row of padding once; the vertical pass follows. The pixels equal those
    of the padded box resized at once, bit for bit (`tests/samples/test_pixels.py`). Besides the image this needs memory
    for box height x view width and view height x box width pixels: an image of 1080 x 20000 padded to 336 x 336 needs
    40 MB and not 1.2 GB.

    A box that shrinks more in height than in width is built whole, since Pillow then begins with the columns.

    Args:
        image: [3, H, W] uint8, the image after its first resize.
        view: view whose last resize is antialiased.
        normalise: padding colour and backend.
    Returns:
        [3, *view.size] uint8.
    """
    top, left, height, width = view.box
    y, x = view.offset[0] - top, view.offset[1] - left  # the image's corner inside the box
    out_height, out_width = view.size
    padded = y > 0 or x > 0 or y + image.shape[1] < height or x + image.shape[2] < width
    if not padded or height * out_width > width * out_height:
        return resize(_crop(image, view, normalise.fill), view.size, normalise.backend)
    padding = torch.tensor(normalise.fill, dtype=torch.uint8).view(3, 1, 1).repeat(1, 1, width)
    columns = resize(padding, (1, out_width), normalise.backend).repeat(1, height, 1)  # [3, height, out_width]
    stop = min(y + image.shape[1], height)
    for start in range(max(y, 0), stop, out_height):
        rows = min(out_height, stop - start)
        band = _crop(image, replace(view, box=(top + start, left, rows, width)), normalise.fill)  # [3, rows, width]
        columns[:, start : start + rows] = resize(band, (rows, out_width), normalise.backend)
    return resize(columns, view.size, normalise.backend)


def shrink(values: Tensor, size: Size) -> Tensor:
    """Resize [3, H, W] normalised values to [3, h, w], bicubic, for views with `View.antialias` False."""
    return F.interpolate(values[None], size=size, mode="bicubic")[0]


def _crop(image: Tensor, view: View, fill: tuple[int, int, int]) -> Tensor:
    """Crop the view's box from the canvas on which `image` lies at the view's offset; uncovered pixels get `fill`."""
    top, left, height, width = view.box
    y, x = view.offset[0] - top, view.offset[1] - left  # the image's corner inside the box
    if y <= 0 and x <= 0 and y + image.shape[1] >= height and x + image.shape[2] >= width:
        return image[:, -y : height - y, -x : width - x]  # no padding: nothing to copy
    canvas = torch.tensor(fill, dtype=torch.uint8).view(3, 1, 1).repeat(1, height, width)
    y0, x0 = max(y, 0), max(x, 0)
    y1, x1 = min(y + image.shape[1], height), min(x + image.shape[2], width)
    if y1 > y0 and x1 > x0:
        canvas[:, y0:y1, x0:x1] = image[:, y0 - y : y1 - y, x0 - x : x1 - x]
    return canvas
