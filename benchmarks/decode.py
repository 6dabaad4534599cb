"""Images per second per core, from file to normalised views, beside the image processor of the same family in
transformers; and the memory of loader workers over many samples.

    python benchmarks/decode.py [--files 200] [--samples 50000] [--seconds 5]

The images are like photographs: smooth colours with fine texture, JPEG quality 90, 400 to 640 pixels a side. Each row
times ours and theirs by turns, in this process, with one thread; CPU seconds, so that a busy machine matters little.
transformers has two versions of each processor: one on torchvision (its default) and one on Pillow. Run it by hand.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessor, LlavaNextImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from lit_mm.data.files import FilePicture
from lit_mm.data.pixels import Normalise, cut_views
from lit_mm.processor import CLIP_MEAN, CLIP_STD, read
from lit_mm.tiling.anyres import plan_anyres
from lit_mm.tiling.plan import TilePlan
from lit_mm.tiling.square import plan_centre_crop

SIDE = 336
SIZES = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
Tiling = Callable[[int, int], TilePlan]


def write_images(folder: Path, count: int) -> list[Path]:
    """`count` JPEG files."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        height, width = (int(side) for side in rng.integers(400, 641, 2))
        smooth = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((width, height))
        texture = np.asarray(smooth).astype(int) + rng.normal(0, 12, (height, width, 1)).astype(int)
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(np.clip(texture, 0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def ours(path: Path, tiling: Tiling, normalise: Normalise) -> Tensor:
    """One file -> [V, 3, H, W], as a worker does it; header included, though an index would know the size."""
    picture = FilePicture.open(path)
    views = tiling(picture.height, picture.width).views
    return torch.stack(cut_views(read(picture, path.name), views, normalise))


def theirs(path: Path, processor: Callable) -> Tensor:
    with Image.open(path) as image:
        return processor(image.convert("RGB"), return_tensors="pt")["pixel_values"]


def rates(ways: dict[str, Callable[[Path], Tensor]], paths: Sequence[Path], seconds: float) -> dict[str, float]:
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


def throughput(paths: Sequence[Path], seconds: float) -> None:
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
    print("images per CPU second           ours    transformers, torchvision    transformers, Pillow   mean difference")
    for family, (tiling, fill, (torchvision, pillow)) in families.items():
        mine = partial(ours, tiling=tiling, normalise=Normalise(CLIP_MEAN, CLIP_STD, fill=fill))
        ways = {
            "ours": mine,
            "torchvision": partial(theirs, processor=torchvision),
            "pillow": partial(theirs, processor=pillow),
        }
        rate = rates(ways, paths, seconds)
        apart = (mine(paths[0]) - ways["pillow"](paths[0]).view(-1, 3, SIDE, SIDE)).abs().mean() * 255 * CLIP_STD[1]
        ratio = {name: f"({rate['ours'] / rate[name]:.1f}x)" for name in rate}
        their = "".join(f"{rate[name]:16.0f} {ratio[name]:12s}" for name in ("torchvision", "pillow"))
        print(f"{family:28s} {rate['ours']:7.0f}{their}  {apart:.3f} of 255", flush=True)


class Samples(torch.utils.data.Dataset):
    """The same files over and over."""

    def __init__(self, paths: Sequence[Path], count: int) -> None:
        self.paths, self.count = paths, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Tensor:
        tiling = partial(plan_centre_crop, size=SIDE)
        return ours(self.paths[number % len(self.paths)], tiling, Normalise(CLIP_MEAN, CLIP_STD))


def memory(paths: Sequence[Path], samples: int) -> None:
    """Resident memory of two workers along the way. The first tenth warms up and does not count."""
    here = psutil.Process()
    before = {child.pid for child in here.children()}
    start, seen, points = time.perf_counter(), 0, []
    every = max(samples // 20, 1)
    for batch in DataLoader(Samples(paths, samples), batch_size=8, num_workers=2):
        seen += len(batch)
        if seen // every > len(points):
            workers = [child for child in here.children() if child.pid not in before]
            points.append(sum(worker.memory_info().rss for worker in workers) / 2**20)
    steady, rate = points[max(len(points) // 10, 1) :], seen / (time.perf_counter() - start)
    print(
        f"resident memory of 2 workers over {seen} samples, {rate:.0f} a second: {steady[0]:.0f} MB at first, "
        f"{steady[-1]:.0f} MB at the end, between {min(steady):.0f} and {max(steady):.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=200, help="distinct images")
    parser.add_argument("--samples", type=int, default=50_000, help="samples of the memory run; 0 for none")
    parser.add_argument("--seconds", type=float, default=5.0, help="wall seconds per way and row")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_images(Path(folder), given.files)
        print(
            f"{given.files} files, {sum(path.stat().st_size for path in paths) / given.files / 1024:.0f} KiB on average"
        )
        if given.seconds > 0:
            throughput(paths, given.seconds)
        if given.samples:
            memory(paths, given.samples)


if __name__ == "__main__":
    main()
