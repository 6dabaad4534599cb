"""Every family's nano recipe, trained through all its stages, and one table of what came out.

    python benchmarks/families.py [--runs runs/families] [--only llava_next ...] [--jobs 2] [--table-only]
                                  [--write README.md]

Runs `python -m lit_mm fit` on one recipe after the other, or on `--jobs` of them side by side, each with its share of
the cores; called again, it resumes what was interrupted and leaves out what is finished. Then prints the table:
held-out exact match per skill, the blind baseline, visual tokens per held-out picture and the seconds of each run. With
--write, the table replaces what stands between the two markers of a Markdown file. Run it with nothing else on the
machine: some minutes a family.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from lit_mm.commands.recipe import RecipeCLI, quiet
from lit_mm.nano.skills import SKILLS

FAMILIES = (
    "llava",
    "llava_1_5",
    "vila",
    "qwen_vl",
    "xcomposer",
    "xcomposer2",
    "llava_next",
    "llava_uhd",
    "monkey",
    "xcomposer2_4khd",
)
START, END = "<!-- families -->", "<!-- end of families -->"


def train(family: str, runs: Path, threads: int) -> None:
    """Run a recipe to its end, or on from where it was."""
    print(f"== {family}", flush=True)
    command = ["fit", "--config", f"experiments/{family}.yaml", "--run_dir", str(runs / family)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    subprocess.run([sys.executable, "-m", "lit_mm", *command], check=True, env=environment)


def visual_tokens(config: str) -> tuple[float, int]:
    """Mean over the recipe's held-out pictures, and the most, as the finished model sees them."""
    with torch.device("meta"):
        cli = RecipeCLI(["--config", config], "describe")
    processor = cli.model.processor
    pictures = [picture for document in cli.data_of(cli.stages[-1]).heldout() for picture in document.pictures]
    counts = [processor.visual_tokens(picture.height, picture.width) for picture in pictures]
    return sum(counts) / len(counts), max(counts)


def row(family: str, run: Path) -> list[str]:
    """The cells of a finished run."""
    summary = json.loads((run / "summary.json").read_text())
    accuracy, blind = summary["accuracy"], summary["blind"]
    mean, most = visual_tokens(f"experiments/{family}.yaml")
    tokens = f"{mean:.0f}" if round(mean) == most else f"{mean:.0f}, at most {most}"
    steps = " + ".join(str(stage["steps"]) for stage in summary["stages"])
    return [
        family,
        f"**{accuracy['overall']:.1%}**",
        f"{blind['overall']:.1%}",
        *(f"{accuracy['skills'][skill]:.0%}" for skill in SKILLS),
        tokens,
        steps,
        f"{summary['seconds']:.0f}",
    ]


def table(rows: list[list[str]]) -> str:
    head = ["recipe", "overall", "blind", *(skill.replace("_", " ") for skill in SKILLS), "visual tokens"]
    head += ["steps", "seconds"]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def write(path: Path, text: str) -> None:
    """Put the table between the markers of a Markdown file."""
    page = path.read_text()
    if page.count(START) != 1 or page.count(END) != 1:
        sys.exit(f"{path}: the table goes between one line {START!r} and one line {END!r}; put them in")
    before, rest = page.split(START)
    path.write_text(f"{before}{START}\n{text}\n{END}{rest.split(END)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/families"), help="where the run folders go")
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=FAMILIES, help="some of the families")
    parser.add_argument("--jobs", type=int, default=1, help="so many recipes side by side")
    parser.add_argument("--table-only", action="store_true", help="train nothing: the table of what is finished")
    parser.add_argument("--write", type=Path, metavar="FILE", help="a Markdown file with the two markers")
    chosen = parser.parse_args()
    quiet()
    if not chosen.table_only:
        missing = [family for family in chosen.only if not (chosen.runs / family / "summary.json").exists()]
        with ThreadPoolExecutor(chosen.jobs) as pool:
            for _ in pool.map(
                partial(train, runs=chosen.runs, threads=max(1, (os.cpu_count() or 1) // chosen.jobs)), missing
            ):
                pass
    finished = [family for family in chosen.only if (chosen.runs / family / "summary.json").exists()]
    text = table([row(family, chosen.runs / family) for family in finished])
    print(text)
    if chosen.write:
        write(chosen.write, text)


if __name__ == "__main__":
    main()
