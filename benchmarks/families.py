"""Every family's nano recipe, trained through all its stages, and one table of what came out.

    python benchmarks/families.py [--runs runs/families] [--only llava_next ...] [--jobs 2] [--table-only]
                                  [--small-text 300] [--write README.md]

Runs `python -m lit_mm fit` on one recipe after the other, or on `--jobs` of them side by side, each with its share of
the cores; called again, it resumes what was interrupted and leaves out what is finished. Then prints the table:
held-out exact match per skill, the blind baseline, visual tokens per held-out picture and the seconds of each run. With
--small-text N, a second table asks the finished runs of high resolution, and those of fixed resolution that they grew
out of, about the small text of the same N held-out pages, of which the first table has twenty to fifty. With --write,
the tables replace what stands between the markers of a Markdown file. Run it with nothing else on the machine: some
minutes a family.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from datamodules.nano import NanoSource
from lit_mm.commands.recipe import RecipeCLI, quiet
from lit_mm.commands.trained import open_trained
from lit_mm.evaluation.examiners import examine
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
PAIRS = (  # high resolution, and the fixed one that it grew out of
    ("llava_next", "llava_1_5"),
    ("llava_uhd", "llava_1_5"),
    ("monkey", "qwen_vl"),
    ("xcomposer2_4khd", "xcomposer2"),
)


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
    counts = [
        processor.visual_tokens(picture.height, picture.width, document.source)
        for document in cli.data_of(cli.stages[-1]).heldout()
        for picture in document.pictures
    ]
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


def skills_table(runs: Path, families: list[str]) -> str:
    """One line a finished run."""
    head = ["recipe", "overall", "blind", *(skill.replace("_", " ") for skill in SKILLS), "visual tokens"]
    head += ["steps", "seconds"]
    return markdown(head, [row(family, runs / family) for family in families])


def small_text(run: Path, documents: int) -> str:
    """Exact match on the small text of held-out pages, with its standard error.

    The pages call their source what the run's own held-out pages of small text do: its limit of tiles may go by it.
    """
    module, data, _ = open_trained(str(run))
    skill = "read_small"
    source_of = {document.skill: document.source for document in data.heldout() if document.skill == skill}
    pages = NanoSource(
        "questions", documents, split="heldout", seed=0, skills=(skill,), questions=1, source_of=source_of
    )
    share = examine(module, [pages[number] for number in range(documents)]).figures.overall
    return f"{share:.0%} ± {math.sqrt(share * (1 - share) / documents):.0%}"


def small_text_table(runs: Path, families: list[str], documents: int) -> str:
    """One line a pair of which both are finished."""
    pairs = [pair for pair in PAIRS if set(pair) <= set(families)]
    found = {
        family: small_text(runs / family, documents) for family in sorted({name for pair in pairs for name in pair})
    }
    rows = [[cell for family in pair for cell in (family, found[family])] for pair in pairs]
    return markdown(["high resolution", "small text", "fixed resolution", "small text"], rows)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def write(path: Path, name: str, text: str) -> None:
    """Put a table between its markers in a Markdown file."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    page = path.read_text()
    if page.count(start) != 1 or page.count(end) != 1:
        sys.exit(f"{path}: the table goes between one line {start!r} and one line {end!r}; put them in")
    before, rest = page.split(start)
    path.write_text(f"{before}{start}\n{text}\n{end}{rest.split(end)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/families"), help="where the run folders go")
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=FAMILIES, help="some of the families")
    parser.add_argument("--jobs", type=int, default=1, help="so many recipes side by side")
    parser.add_argument("--table-only", action="store_true", help="train nothing: the table of what is finished")
    parser.add_argument("--small-text", type=int, metavar="N", help="ask about the small text of so many pages, too")
    parser.add_argument("--write", type=Path, metavar="FILE", help="a Markdown file with the markers")
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
    tables = {"families": skills_table(chosen.runs, finished)}
    if chosen.small_text:
        tables["small text"] = small_text_table(chosen.runs, finished, chosen.small_text)
    for name, text in tables.items():
        print(text, end="\n\n")
        if chosen.write:
            write(chosen.write, name, text)


if __name__ == "__main__":
    main()
