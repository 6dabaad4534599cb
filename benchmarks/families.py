"""This benchmark trains the nano recipe of every family through all stages and prints a table of the results.

    python benchmarks/families.py [--runs runs/families] [--only llava_next ...] [--jobs 2] [--table-only]
                                  [--small-text 300] [--write README.md]

It runs `python -m lit_mm fit` on one recipe after another, or on `--jobs` recipes at a time, each with an equal share
of the cores. When it is started again, it resumes interrupted runs and skips finished ones. The table has held-out
exact match per skill, the blind baseline, visual tokens per held-out picture, and the seconds of each run. A family
that is examined otherwise has the mean of its own figures, such as recall at 1, and no skills; a second table has them.

With --small-text N, a second table compares finished runs of high resolution with the runs of fixed resolution that
they extend, on the small text of the same N held-out pages; the first table has twenty to fifty such pages. With
--write, the tables replace the text between the markers of a Markdown file. Run it with nothing else on the machine; a
family takes some minutes.
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

from lit_mm.commands.recipe import RecipeCLI, quiet
from lit_mm.commands.trained import open_trained
from lit_mm.datamodules.nano import NanoSource
from lit_mm.evaluation.examiners import examine
from lit_mm.nano.skills import SKILLS

FAMILIES = (
    "blip",
    "blip2",
    "instructblip",
    "minigpt4",
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
    "fuyu",
    "cogvlm",
    "cogagent",
    "mini_gemini",
)
PAIRS = (  # family of high resolution, and the family of fixed resolution that it extends
    ("llava_next", "llava_1_5"),
    ("llava_uhd", "llava_1_5"),
    ("monkey", "qwen_vl"),
    ("xcomposer2_4khd", "xcomposer2"),
)


def train(family: str, runs: Path, threads: int) -> None:
    """Run a recipe to its end; an interrupted run is resumed."""
    print(f"== {family}", flush=True)
    command = ["fit", "--config", f"experiments/{family}.yaml", "--run_dir", str(runs / family)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    subprocess.run([sys.executable, "-m", "lit_mm", *command], check=True, env=environment)


def visual_tokens(config: str) -> tuple[float, int]:
    """Count visual tokens per held-out picture with the inputs of the last stage. Returns (mean, maximum)."""
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
    """Table cells of a finished run."""
    summary = json.loads((run / "summary.json").read_text())
    accuracy, blind = summary["accuracy"], summary["blind"]
    mean, most = visual_tokens(f"experiments/{family}.yaml")
    tokens = f"{mean:.0f}" if round(mean) == most else f"{mean:.0f}, at most {most}"
    steps = " + ".join(str(stage["steps"]) for stage in summary["stages"])
    return [
        family,
        f"**{accuracy['overall']:.1%}**" + ("" if answers(accuracy) else " recall"),
        f"{blind['overall']:.1%}",
        *(f"{accuracy['skills'][skill]:.0%}" if answers(accuracy) else "" for skill in SKILLS),
        tokens,
        steps,
        f"{summary['seconds']:.0f}",
    ]


def answers(figures: dict) -> bool:
    """True for the figures of a family that is asked the held-out questions."""
    return set(figures["skills"]) <= set(SKILLS)


def recall_table(runs: Path, families: list[str]) -> str:
    """The table of recall at 1, blind in brackets, with one line per finished run of a family that is not asked."""
    summaries = {family: json.loads((runs / family / "summary.json").read_text()) for family in families}
    asked = {family: each for family, each in summaries.items() if not answers(each["accuracy"])}
    names = list(dict.fromkeys(name for each in asked.values() for name in each["accuracy"]["skills"]))
    rows = [
        [family, *(f"{each['accuracy']['skills'][n]:.1%} ({each['blind']['skills'][n]:.1%})" for n in names)]
        for family, each in asked.items()
    ]
    return markdown(["recipe", *names], rows) if rows else ""


def skills_table(runs: Path, families: list[str]) -> str:
    """The table of skills with one line per finished run."""
    head = ["recipe", "overall", "blind", *(skill.replace("_", " ") for skill in SKILLS), "visual tokens"]
    head += ["steps", "seconds"]
    return markdown(head, [row(family, runs / family) for family in families])


def small_text(run: Path, documents: int) -> str:
    """Exact match on the small text of held-out pages, with its standard error.

    The pages get the source name of the run's own held-out pages of small text, because limits of tiles may depend on
    it.
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
    """The table of small text with one line per pair of finished runs."""
    pairs = [pair for pair in PAIRS if set(pair) <= set(families)]
    figures = {
        family: small_text(runs / family, documents) for family in sorted({name for pair in pairs for name in pair})
    }
    rows = [[cell for family in pair for cell in (family, figures[family])] for pair in pairs]
    return markdown(["high resolution", "small text", "fixed resolution", "small text"], rows)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def write(path: Path, name: str, text: str) -> None:
    """Replace the text between the markers `name` of a Markdown file."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    page = path.read_text()
    if page.count(start) != 1 or page.count(end) != 1:
        sys.exit(f"{path}: the table goes between one line {start!r} and one line {end!r}; add these lines")
    before, rest = page.split(start)
    path.write_text(f"{before}{start}\n{text}\n{end}{rest.split(end)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/families"), help="parent of the run folders")
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=FAMILIES, help="families to run")
    parser.add_argument("--jobs", type=int, default=1, help="number of recipes that run at a time")
    parser.add_argument("--table-only", action="store_true", help="train nothing, print the table of finished runs")
    parser.add_argument("--small-text", type=int, metavar="N", help="also compare on the small text of N pages")
    parser.add_argument("--write", type=Path, metavar="FILE", help="Markdown file with the markers")
    options = parser.parse_args()
    quiet()
    if not options.table_only:
        missing = [family for family in options.only if not (options.runs / family / "summary.json").exists()]
        with ThreadPoolExecutor(options.jobs) as pool:
            for _ in pool.map(
                partial(train, runs=options.runs, threads=max(1, (os.cpu_count() or 1) // options.jobs)), missing
            ):
                pass
    finished = [family for family in options.only if (options.runs / family / "summary.json").exists()]
    tables = {"families": skills_table(options.runs, finished), "recall": recall_table(options.runs, finished)}
    if options.small_text:
        tables["small text"] = small_text_table(options.runs, finished, options.small_text)
    for name, text in tables.items():
        if not text:
            continue
        print(text, end="\n\n")
        if options.write:
            write(options.write, name, text)


if __name__ == "__main__":
    main()
