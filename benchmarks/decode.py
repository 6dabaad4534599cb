"""Images per second per core, from file to normalised views, beside the image processor of the same family in
transformers.

    taskset -c 0 python benchmarks/decode.py [--files 100] [--seconds 5]

The images are like photographs: smooth colours with texture at all scales, JPEG quality 90; small ones of 400 to 640
pixels a side, and large ones of 1200 to 2048. Each row times ours and theirs by turns, in this process, with one
thread; CPU seconds, so that a busy machine matters little. transformers has two versions of each processor: one on
torchvision (its default) and one on Pillow. Ours is shown twice: as it is, and with every JPEG decoded whole.

What nobody who decodes with libjpeg-turbo can beat stands in the last two columns: the rate of decoding alone, and that
of its entropy decoding alone (all coefficients read, one pixel in 64 made of them). Run it by hand.
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
    """`count` JPEG files with sides of so many pixels: about 2.3 bits a pixel."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        height, width = (int(side) for side in rng.integers(sides[0], sides[1] + 1, 2))
        smooth = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((width, height))
        pixels = np.asarray(smooth) * 0.7 + 30
        for scale in (1, 2, 4, 8, 16, 32):  # as in nature: about as much contrast in every octave
            noise = rng.normal(0, 4 if scale == 1 else 7, (height // scale + 1, width // scale + 1)).astype(np.float32)
            pixels += np.asarray(Image.fromarray(noise).resize((width, height)))[..., None]
        paths.append(folder / f"{sides[0]}-{number}.jpg")
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def ours(path: Path, tiling: Tiling, normalise: Normalise) -> Tensor:
    """One file -> [V, 3, H, W], as a worker does it; header included, though an index would know the size."""
    picture = FilePicture.open(path)
    views = tiling(picture.height, picture.width).views
    return torch.stack(cut_views(read(picture, path.name, normalise.least(views)), views, normalise))


def theirs(path: Path, processor: Callable) -> Tensor:
    with Image.open(path) as image:
        return processor(image.convert("RGB"), return_tensors="pt")["pixel_values"]


def decoded(path: Path) -> np.ndarray:
    return simplejpeg.decode_jpeg(path.read_bytes(), colorspace="RGB")


def entropy_decoded(path: Path) -> np.ndarray:
    return simplejpeg.decode_jpeg(path.read_bytes(), colorspace="RGB", min_height=1, min_width=1, min_factor=8)


def rates(ways: dict[str, Callable[[Path], Any]], paths: Sequence[Path], seconds: float) -> dict[str, float]:
    """Images per CPU second of each way: the median over rounds in which every way takes every fourth image."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way(paths[0])  # imports and caches
    end, turn = time.perf_counter() + seconds * len(ways), 0
    while time.perf_counter() < end or turn < 3:
        some = paths[turn % 4 :: 4]
        for name, way in ways.items():
            start = time.process_time()
            for path in some:
                way(path)
            spent[name].append(len(some) / (time.process_time() - start))
        turn += 1
    return {name: statistics.median(values) for name, values in spent.items()}


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
        ways = {
            "ours": partial(ours, tiling=tiling, normalise=normalise),
            "whole": partial(ours, tiling=tiling, normalise=replace(normalise, spare=None)),
            "torchvision": partial(theirs, processor=torchvision),
            "pillow": partial(theirs, processor=pillow),
            "decoding": decoded,
            "entropy": entropy_decoded,
        }
        rate = rates(ways, paths, seconds)
        theirs_ = ways["pillow"](paths[0]).view(-1, 3, SIDE, SIDE)
        apart = [float((ways[w](paths[0]) - theirs_).abs().mean()) * 255 * CLIP_STD[1] for w in ("ours", "whole")]
        print(
            f"{name:6s}{family:19s}{rate['ours']:6.0f}{rate['whole']:7.0f}"
            + "".join(f"{rate[n]:13.0f} ({rate['ours'] / rate[n]:.1f}x)" for n in ("torchvision", "pillow"))
            + f"{apart[0]:11.3f} {apart[1]:.3f}{rate['decoding']:11.0f}{rate['entropy']:9.0f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100, help="distinct images of each set")
    parser.add_argument("--seconds", type=float, default=5.0, help="wall seconds per way and row")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("images per CPU second      ours  whole    torchvision         pillow     off by, of 255   decoding  entropy")
    for name, sides in SETS.items():
        with tempfile.TemporaryDirectory() as folder:
            paths = write_images(Path(folder), given.files, sides)
            throughput(name, paths, given.seconds)


if __name__ == "__main__":
    main()
