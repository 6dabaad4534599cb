"""Experts that cut images into segments: SAM, and a graph-based segmentation without weights."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lit_mm.annotation.description import Identity, Segment, rounded_box
from lit_mm.annotation.experts import Models, SegmentExpert, class_path, optional_package
from lit_mm.annotation.language_models import digest_of_file
from lit_mm.errors import UserError, first_line

PUBLISHED = "SAM ViT-H, automatic mask generator"
WHITE = 255


def segment_of(image: np.ndarray, mask: np.ndarray) -> Segment | None:
    """Cut a segment out of an image. None if the mask is empty.

    Args:
        image: [H, W, 3] uint8.
        mask: [H, W], True inside of the segment.
    Source: data_generation/ of github.com/Yuliang-Liu/Monkey, which paints the outside white and crops the box.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    inside = mask[top:bottom, left:right, None]
    crop = np.where(inside, image[top:bottom, left:right], np.uint8(WHITE))
    box = rounded_box((left, top, right, bottom), *mask.shape)
    return Segment(box, int(mask.sum()), Image.fromarray(crop))


class Felzenszwalb(SegmentExpert):
    """Segments by colour with scikit-image; it stands for SAM where nobody has its weights.

    Args:
        scale: larger values give larger segments.
        sigma: standard deviation of the blur before, pixels.
        min_share: smallest segment, as a share of the image.
        longest_side: images are shrunk to this longest side before, pixels.
    Raises:
        UserError: a value is out of its range.
    Source: Felzenszwalb and Huttenlocher, IJCV 2004.
    """

    def __init__(
        self, scale: float = 300.0, sigma: float = 0.8, min_share: float = 0.01, longest_side: int = 512
    ) -> None:
        if scale <= 0 or sigma < 0 or not 0 < min_share <= 1 or longest_side < 1:
            raise UserError(
                "Felzenszwalb: `scale` and `longest_side` are above 0, `sigma` at least 0 and `min_share` above 0 and "
                f"at most 1, got {scale:g}, {longest_side}, {sigma:g} and {min_share:g}"
            )
        self.scale, self.sigma, self.min_share, self.longest_side = scale, sigma, min_share, longest_side
        self._segment: Any = None

    def load(self, models: Models) -> None:
        """See `Expert.load`.

        Raises:
            UserError: scikit-image is not installed.
        """
        self._segment = optional_package("skimage.segmentation", "Felzenszwalb", "'lit_mm[engines]'").felzenszwalb

    def identity(self) -> Identity:
        version = f"scikit-image {importlib.metadata.version('scikit-image')}"
        return Identity(class_path(self), licence="BSD-3-Clause", version=version, stands_for=PUBLISHED)

    def segments(self, images: Sequence[Image.Image]) -> list[list[Segment]]:
        """See `SegmentExpert.segments`."""
        return [self._of_image(image) for image in images]

    def _of_image(self, image: Image.Image) -> list[Segment]:
        image = image.copy()
        image.thumbnail((self.longest_side, self.longest_side))
        pixels = np.asarray(image)
        smallest = max(1, round(self.min_share * image.width * image.height))
        labels = self._segment(pixels, scale=self.scale, sigma=self.sigma, min_size=smallest)
        cut = (segment_of(pixels, labels == label) for label in range(int(labels.max()) + 1))
        return [segment for segment in cut if segment is not None]


class Sam(SegmentExpert):
    """Segments by SAM through the mask generation of transformers, with its default thresholds.

    Args:
        model: folder of the weights in transformers' layout, or a name of the Hugging Face hub.
        points_per_batch: number of points that the model reads together.
        device: device of the model, such as "cpu" or "cuda:0"; None for that of transformers.
        licence: licence of the weights. The published ones have Apache-2.0.
    """

    def __init__(
        self, model: str, points_per_batch: int = 64, device: str | None = None, licence: str = "Apache-2.0"
    ) -> None:
        self.model, self.points_per_batch, self.device, self.licence = model, points_per_batch, device, licence
        self._generator: Any = None
        self._digest = ""

    def load(self, models: Models) -> None:
        """See `Expert.load`.

        Raises:
            UserError: the weights cannot be read.
        """
        from transformers import pipeline

        try:
            self._generator = pipeline("mask-generation", model=self.model, device=self.device)
        except (OSError, ValueError) as error:  # a ValueError: the folder holds no model
            raise UserError(
                f"Sam: the weights {self.model!r} cannot be read ({first_line(error)}). Correct `model`, or "
                "take lit_mm.annotation.segments.Felzenszwalb"
            ) from error
        folder = Path(self.model)
        files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
        self._digest = " ".join(digest_of_file(file) for file in files) or self.model

    def identity(self) -> Identity:
        version = f"transformers {importlib.metadata.version('transformers')}"
        return Identity(class_path(self), self._digest, self.licence, version)

    def segments(self, images: Sequence[Image.Image]) -> list[list[Segment]]:
        """See `SegmentExpert.segments`."""
        return [self._of_image(image) for image in images]

    def _of_image(self, image: Image.Image) -> list[Segment]:
        masks = self._generator(image, points_per_batch=self.points_per_batch)["masks"]
        pixels = np.asarray(image)
        cut = (segment_of(pixels, np.asarray(mask, dtype=bool)) for mask in masks)
        return [segment for segment in cut if segment is not None]
