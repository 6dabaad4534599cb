"""This benchmark measures the memory of loader workers over many samples, for lit_mm and for a usual dataset.

    python benchmarks/memory.py [--samples 50000] [--workers 2]

"ours" is `lit_mm.datamodules.Conversations` on a .jsonl file with small JPEGs: workers read entries by offset, lay them
out, decode and collate. "theirs" is a map-style dataset that keeps all parsed entries in a list, as most training code
does, with Pillow and the CLIP image processor of transformers in the same DataLoader. The memory of the workers is read
twenty times, as RSS (with shared pages, which count in every worker) and as USS (without). The first fifth of the
readings is dropped as warm-up. Run it by hand.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPImageProcessor

from lit_mm.datamodules.conversations import Conversations
from lit_mm.prompts.source import load_tokenizer
from lit_mm.prompts.xcomposer2 import XComposer2Prompt
from lit_mm.samples.processor import Processor
from lit_mm.stages.stage import Stage, Train
from lit_mm.tiling.grids import PatchGrid
from lit_mm.tiling.plan import Stretch

SIDE, PATCH, BATCH = 56, 14, 8
FILES, POINTS = 64, 20
WORDS = ["what", "is", "the", "colour", "of", "this", "large", "red", "circle", "near", "page", "one", "two", "three"]


def write(folder: Path, samples: int) -> Path:
    """Write `FILES` JPEGs and a .jsonl file in LLaVA's format with `samples` entries that share them."""
    rng, noise = Random(0), np.random.default_rng(0)
    for number in range(FILES):
        pixels = noise.integers(0, 256, (8, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((96 + number, 64)).save(folder / f"{number}.jpg")
    path = folder / "data.jsonl"
    with path.open("w") as file:
        for number in range(samples):
            question, answer = (" ".join(rng.choices(WORDS, k=rng.randint(3, 20))) for _ in range(2))
            turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
            file.write(json.dumps({"id": str(number), "image": f"{number % FILES}.jpg", "conversations": turns}) + "\n")
    return path


def stream_loader(path: Path, samples: int, workers: int) -> DataLoader:
    """Build the loader of lit_mm."""
    tokenizer = load_tokenizer("nano")
    processor = Processor(
        tokenizer,
        XComposer2Prompt("<|im_start|>", "<|im_end|>"),
        tiling=Stretch(SIDE),
        token_grid=PatchGrid(PATCH, "ViT"),
    )
    data = Conversations(str(path), format="llava", global_batch=BATCH, num_workers=workers)
    data.begin(processor, Stage("all", {"connector": Train(1e-3)}, max_steps=samples // BATCH), seed=0)
    return data.train_dataloader()


class Entries(Dataset):
    """A map-style dataset that keeps all parsed entries in a list."""

    def __init__(self, path: Path) -> None:
        self.folder, self.tokenizer = path.parent, load_tokenizer("nano")
        self.entries = [json.loads(line) for line in path.read_text().splitlines()]
        size = {"height": SIDE, "width": SIDE}
        self.processor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, number: int) -> dict[str, Any]:
        entry = self.entries[number]
        with Image.open(self.folder / entry["image"]) as image:
            pixels = self.processor(image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
        text = " ".join(turn["value"] for turn in entry["conversations"])
        return {"pixels": pixels, "ids": self.tokenizer.encode(text)}


def list_loader(path: Path, workers: int) -> DataLoader:
    """Build the loader of `Entries`."""

    def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = [torch.tensor(sample["ids"]) for sample in samples]
        stacked = torch.stack([sample["pixels"] for sample in samples])
        return {"pixels": stacked, "ids": torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)}

    generator = torch.Generator().manual_seed(0)
    return DataLoader(Entries(path), BATCH, shuffle=True, num_workers=workers, collate_fn=collate, generator=generator)


def watch(name: str, loader: Iterable[Any], samples: int) -> None:
    """Iterate over a loader and print the memory of its workers.

    Args:
        name: label of the line.
        loader: loader to iterate over.
        samples: number of samples in the loader.
    """
    process = psutil.Process()
    others = {child.pid for child in process.children()}
    interval, count, points = max(samples // POINTS, 1), 0, []
    start = time.perf_counter()
    for _ in loader:
        count += BATCH
        if count // interval > len(points):
            workers = [child.memory_full_info() for child in process.children() if child.pid not in others]
            points.append((count, sum(w.rss for w in workers) / 2**20, sum(w.uss for w in workers) / 2**20))
    steady = np.array(points[len(points) // 5 :])
    seconds = time.perf_counter() - start
    figures = []
    for kind, values in zip(("RSS", "USS"), steady.T[1:], strict=True):
        slope = np.polyfit(steady[:, 0], values, 1)[0] * 10_000
        figures.append(f"{kind} {values[0]:6.0f} -> {values[-1]:6.0f} MB, {slope:+6.2f} MB per 10,000 samples")
    print(f"{name:7s}{count} samples, {count / seconds:5.0f} a second: {'; '.join(figures)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), options.samples)
        watch("ours", stream_loader(path, options.samples, options.workers), options.samples)
        watch("theirs", list_loader(path, options.workers), options.samples)


if __name__ == "__main__":
    main()
