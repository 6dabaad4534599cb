"""This benchmark measures images per CPU second, from file to normalised views, of lit_mm and of transformers.

    taskset -c 0 python benchmarks/decode.py [--files 100] [--seconds 5]

The images resemble photographs: smooth colours with texture at all scales, JPEG quality 90. Sides are 400 to 640 pixels
in the set "small" and 1200 to 2048 pixels in the set "large". Each row of the table times all methods in turn, in one
process with one thread, in CPU seconds, so that other load on the machine matters little. The columns:

- ours: views by lit_mm.
- whole: views by lit_mm with every JPEG decoded at full size.
- torchvision, pillow: the two image processors of the same family in transformers; torchvision is the default.
- off by: mean difference of "ours" and of "whole" from the Pillow processor, out of 255.
- decoding: decoding by libjpeg-turbo alone, an upper limit for every program that uses it.
- entropy: entropy decoding by libjpeg-turbo alone (all coefficients are read, but only one pixel in 64 is computed).

Run it by hand.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, LlavaNextImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from lit_mm.documents.files import FilePicture
from lit_mm.samples.pixels import Normalise, cut_views
from lit_mm.samples.processor import CLIP_MEAN, CLIP_STD, read
from lit_mm.tiling.anyres import plan_anyres
from lit_mm.tiling.plan import TilePlan
from lit_mm.tiling.square import plan_centre_crop

SIDE = 336
SETS = {"small": (400, 640), "large": (1200, 2048)}  # shortest and longest side, pixels
SIZES = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
Tiling = Callable[[int, int], TilePlan]


def write_images(folder: Path, count: int, sides: tuple[int, int]) -> list[Path]:
    """Write `count` JPEG files with random sides in a range of pixels, at about 2.3 bits per pixel."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        height, width = (int(side) for side in rng.integers(sides[0], sides[1] + 1, 2))
        smooth = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((width, height))
        pixels = np.asarray(smooth) * 0.7 + 30
        for scale in (1, 2, 4, 8, 16, 32):  # natural images have about equal contrast in every octave
            noise = rng.normal(0, 4 if scale == 1 else 7, (height // scale + 1, width // scale + 1)).astype(np.float32)
            pixels += np.asarray(Image.fromarray(noise).resize((width, height)))[..., None]
        paths.append(folder / f"{sides[0]}-{number}.jpg")
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def views_of_file(path: Path, tiling: Tiling, normalise: Normalise) -> Tensor:
    """Compute the views [V, 3, H, W] of one file as a worker does. The header is read, too, without a length index."""
    picture = FilePicture.open(path)
    views = tiling(picture.height, picture.width).views
    return torch.stack(cut_views(read(picture, path.name, normalise.least(views)), views, normalise))


def process(path: Path, processor: Callable) -> Tensor:
    """Compute the views of one file with an image processor of transformers."""
    with Image.open(path) as image:
        return processor(image.convert("RGB"), return_tensors="pt")["pixel_values"]


def decode(path: Path) -> np.ndarray:
    return simplejpeg.decode_jpeg(path.read_bytes(), colorspace="RGB")


def decode_entropy(path: Path) -> np.ndarray:
    return simplejpeg.decode_jpeg(path.read_bytes(), colorspace="RGB", min_height=1, min_width=1, min_factor=8)


def rates(methods: dict[str, Callable[[Path], Any]], paths: Sequence[Path], seconds: float) -> dict[str, float]:
    """Images per CPU second of each method: the median over rounds in which every method takes every fourth image."""
    samples: dict[str, list[float]] = {name: [] for name in methods}
    for method in methods.values():
        method(paths[0])  # warms up imports and caches
    end, turn = time.perf_counter() + seconds * len(methods), 0
    while time.perf_counter() < end or turn < 3:
        subset = paths[turn % 4 :: 4]
        for name, method in methods.items():
            start = time.process_time()
            for path in subset:
                method(path)
            samples[name].append(len(subset) / (time.process_time() - start))
        turn += 1
    return {name: statistics.median(values) for name, values in samples.items()}


def throughput(name: str, paths: Sequence[Path], seconds: float) -> None:
    families: dict[str, tuple[Tiling, tuple, tuple[Callable, Callable]]] = {
        "CLIP centre crop": (
            partial(plan_centre_crop, size=SIDE),
            (255, 255, 255),
            (CLIPImageProcessor(**SIZES), CLIPImageProcessorPil(**SIZES)),
        ),
        "LLaVA-NeXT AnyRes": (
            partial(plan_anyres, rule="hf"),
            (0, 0, 0),
            (LlavaNextImageProcessor(**SIZES), LlavaNextImageProcessorPil(**SIZES)),
        ),
    }
    for family, (tiling, fill, (torchvision, pillow)) in families.items():
        normalise = Normalise(CLIP_MEAN, CLIP_STD, fill=fill)
        methods = {
            "ours": partial(views_of_file, tiling=tiling, normalise=normalise),
            "whole": partial(views_of_file, tiling=tiling, normalise=replace(normalise, spare=None)),
            "torchvision": partial(process, processor=torchvision),
            "pillow": partial(process, processor=pillow),
            "decoding": decode,
            "entropy": decode_entropy,
        }
        rate = rates(methods, paths, seconds)
        reference = methods["pillow"](paths[0]).view(-1, 3, SIDE, SIDE)
        gaps = [float((methods[m](paths[0]) - reference).abs().mean()) * 255 * CLIP_STD[1] for m in ("ours", "whole")]
        print(
            f"{name:6s}{family:19s}{rate['ours']:6.0f}{rate['whole']:7.0f}"
            + "".join(f"{rate[n]:13.0f} ({rate['ours'] / rate[n]:.1f}x)" for n in ("torchvision", "pillow"))
            + f"{gaps[0]:11.3f} {gaps[1]:.3f}{rate['decoding']:11.0f}{rate['entropy']:9.0f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100, help="number of images in each set")
    parser.add_argument("--seconds", type=float, default=5.0, help="wall seconds per method and row")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("images per CPU second      ours  whole    torchvision         pillow     off by, of 255   decoding  entropy")
    for name, sides in SETS.items():
        with tempfile.TemporaryDirectory() as folder:
            paths = write_images(Path(folder), options.files, sides)
            throughput(name, paths, options.seconds)


if __name__ == "__main__":
    main()
