"""Experts without models: what they say depends on the pixels, and on the seed where they draw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from lit_mm.annotation.description import Description, Identity, Segment
from lit_mm.annotation.experts import (
    Models,
    OverallExpert,
    RegionExpert,
    ScoreExpert,
    SegmentExpert,
    TextExpert,
    TrainedModel,
    class_path,
)
from lit_mm.annotation.segments import segment_of
from lit_mm.errors import UserError

REFUSED = (7, 13)  # (height, width) of images that `Captions` refuses


class NoModels:
    """Opens nothing."""

    def open(self, checkpoint: str, stage: str | None) -> TrainedModel:
        raise AssertionError(f"no expert opens {checkpoint!r}")


class Stub:
    """Facts of an expert without weights."""

    def load(self, models: Models) -> None:
        """A stub has nothing to load."""

    def identity(self) -> Identity:
        return Identity(class_path(self), "00ff", "CC0", stands_for="a real one")


class Captions(Stub, OverallExpert):
    """Draws three digits for each image. It refuses images of the size `REFUSED`."""

    def __init__(self) -> None:
        self.images = 0

    def captions(self, images: Sequence[Image.Image], seeds: Sequence[int]) -> list[str]:
        if any((image.height, image.width) == REFUSED for image in images):
            raise UserError("the tiling refuses 7 x 13")
        self.images += len(images)
        return [f"caption {Random(seed).randrange(1000):03d}" for seed in seeds]


class Halves(Stub, RegionExpert):
    """Finds the left half, the right half, and the whole of every image."""

    def regions(self, images: Sequence[Image.Image], seeds: Sequence[int]) -> list[list[Description]]:
        boxes = ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0))
        return [[Description(f"region {number}", box) for number, box in enumerate(boxes)] for _ in images]


class Words(Stub, TextExpert):
    """Reads one word with high and one with low confidence."""

    def texts(self, images: Sequence[Image.Image]) -> list[list[Description]]:
        strings = (("STOP <b>", 0.9), ("24h", 0.85))
        return [[Description(text, (0.1, 0.1, 0.4, 0.2), score) for text, score in strings] for _ in images]


class Stripes(Stub, SegmentExpert):
    """Cuts images into columns of one pixel, the last one two pixels wide."""

    def segments(self, images: Sequence[Image.Image]) -> list[list[Segment]]:
        segments = []
        for image in images:
            pixels = np.asarray(image)
            columns = np.minimum(np.arange(image.width), image.width - 2)
            masks = (np.broadcast_to(columns == column, pixels.shape[:2]) for column in range(image.width - 1))
            segments.append([segment for mask in masks if (segment := segment_of(pixels, mask)) is not None])
        return segments


class Scores(Stub, ScoreExpert):
    """Scores by the last digit of the text: 0.05, 0.15, ... 0.95; texts without a digit get 0.99."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []

    def scores(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[float]:
        self.sizes += [image.size for image in images]
        return [int(text[-1]) / 10 + 0.05 if text[-1:].isdigit() else 0.99 for text in texts]


def write_images(folder: Path, count: int) -> Path:
    """Write images of different sizes and random pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (12, 20 + number % 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.{'png' if number % 2 else 'jpg'}")
    return folder
