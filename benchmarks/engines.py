"""This study closes the loop of the data engines in the nano world: one command, one seed.

    python benchmarks/engines.py [--runs runs/engines] [--pages 1500] [--human 400] [--steps 1000] [--noise 0.4]

1. Pages are written with their transcripts as captions. A share of the web captions, the planted noise, belongs to
   other pages. Human captions are true.
2. A nano BLIP is pre-trained on both, and fine-tuned on the human captions twice: as captioner and as retrieval model.
3. CapFilt filters the web captions and writes synthetic ones. New models are trained from the original initialisation,
   equally long, on noisy captions, on filtered ones, on noisy and synthetic ones, and on filtered ones of both kinds.
4. Monkey's engine describes the web pages, with the captioner for captions and regions and a template for the merge.
   New models are trained on these descriptions, and on the plain captions of the captioner.
5. All are compared by recall at 1 on held-out pages, in pairs, with 95 % bootstrap intervals over pages.

Each claim is reported as shown or not shown. The intervals cover the choice of held-out pages and not the seed of
training. Every part resumes: `fit` from its newest checkpoint, `annotate` from its last batch; finished parts are
skipped. A resumed study has the same choices; `--heldout` and `--side_by_side` alone may differ.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import yaml

from lit_mm.annotation.shards import PAGE, read_accounts
from lit_mm.commands.trained import open_model
from lit_mm.datamodules.nano import NanoSource
from lit_mm.errors import UserError
from lit_mm.evaluation.examiners import examine
from lit_mm.evaluation.statistics import Comparison, bootstrap_interval, paired_bootstrap
from lit_mm.run.files import write_whole
from lit_mm.stream.order import stable_hash

RECIPE = Path(__file__).parents[1] / "experiments/blip.yaml"
SKILLS = ("read_large", "read_small", "form", "chart", "locate")
WEB, HUMAN = "web", "human"
PDEATHSIG = 1  # option of prctl(2): the signal that a process gets when its parent dies
SETS = "sets"  # folder of the data sets that the engines write
KINDS = ("noisy", "filtered", "captioned", "both", "plain", "described")
CLAIMS = (  # (claim, model that is worse, model that is better)
    ("the filter alone helps", "noisy", "filtered"),
    ("synthetic captions alone help", "noisy", "captioned"),
    ("captioner and filter help together", "noisy", "both"),
    ("Monkey's descriptions are better than plain captions", "plain", "described"),
)


def write_pages(folder: Path, count: int, *, first: int, noise: float, seed: int) -> list[bool]:
    """Write pages and captions as a folder source. Return True for each page whose caption belongs to another page."""
    record = folder / "noise.json"
    if record.is_file():
        return json.loads(record.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    source = NanoSource("captions", first + count, split="train", seed=seed, skills=SKILLS, questions=1)
    documents = [source[first + number] for number in range(count)]
    lines, noisy = [], []
    for number, document in enumerate(documents):
        draws = Random(stable_hash(seed, "noise", first + number))
        caption, wrong = document.answer, draws.random() < noise
        if wrong:
            others = [other.answer for other in documents if other.answer != document.answer]
            caption = draws.choice(others)
        document.pictures[0].read().save(folder / f"{number:05d}.png")
        lines.append(json.dumps({"id": document.id, "image": f"{number:05d}.png", "caption": caption}))
        noisy.append(wrong)
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    write_whole(record, json.dumps(noisy))
    return noisy


def corpus(name: str, path: Path, form: str) -> dict[str, str]:
    return {"name": name, "format": form, "path": str(path.absolute())}


def recipe(corpora: Sequence[Mapping[str, str]], human: Mapping[str, str], steps: int, *, finetunes: bool) -> dict:
    """Return the nano recipe of BLIP on these corpora; captioner and retrieval model are fine-tuned on `human`."""
    config = yaml.safe_load(RECIPE.read_text())
    stages = config["stages"] if finetunes else config["stages"][:1]
    for stage in stages:
        stage["max_steps"] = steps if stage["name"] == "pretrain" else max(1, steps // 5)
        if stage["name"] != "pretrain":
            stage["data"] = {"corpora": [dict(human)]}
    config["stages"] = stages
    config["data"] = {
        "class_path": "lit_mm.datamodules.corpora.Corpora",
        "init_args": {"corpora": [dict(entry) for entry in corpora], "global_batch": 32, "num_workers": 1},
    }
    return config | {"track": False, "examine_every": 0, "checkpoint_every": 50, "keep_checkpoints": 1}


def agree(runs: Path, choices: Mapping[str, Any]) -> None:
    """Write the choices of a new study, or compare them with those of the study in the folder.

    Raises:
        UserError: the folder holds a study with other choices.
    """
    record = runs / "choices.json"
    if record.is_file():
        earlier = json.loads(record.read_text())
        if keys := [key for key in choices if choices[key] != earlier.get(key)]:
            values = ", ".join(f"--{key} {earlier.get(key)}" for key in keys)
            raise UserError(
                f"{str(runs)!r} holds a study with {values}. Resume with the same, or choose another --runs"
            )
    write_whole(record, json.dumps(choices))


def command(*words: str, program: Sequence[str] = (sys.executable, "-m", "lit_mm"), threads: int | None = None) -> None:
    """Run a command of the package. On Linux it is killed with this process, so that a restart finds its files free.

    The signal comes when the thread ends that started the command: a thread waits here until the command has ended.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None

    def die_with_parent() -> None:
        if library is not None:
            library.prctl(PDEATHSIG, signal.SIGKILL)

    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    subprocess.run([*program, *words], check=True, env=environment, preexec_fn=die_with_parent)


def fit(runs: Path, name: str, config: dict[str, Any], *, threads: int | None = None) -> Path:
    """Train a model, or skip it if it is finished. Return its run folder."""
    folder, record = runs / name, runs / f"{name}.json"
    if not record.is_file():
        (runs / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        start = time.monotonic()
        command("fit", "--config", str(runs / f"{name}.yaml"), "--run_dir", str(folder), threads=threads)
        write_whole(record, json.dumps({"seconds_of_last_launch": round(time.monotonic() - start)}))
    return folder


def expert(name: str, base: Path, stage: str, **arguments: Any) -> dict[str, Any]:
    path = f"lit_mm.annotation.checkpoints.{name}"
    return {"class_path": path, "init_args": {"checkpoint": str(base), "stage": stage, **arguments}}


def annotate(runs: Path, name: str, engine: dict[str, Any], sources: Sequence[Mapping[str, Any]]) -> Path:
    """Run an engine, or what is left of it. Return the folder of its data sets."""
    config = {"engine": engine, "sources": [dict(source) for source in sources], "settings": {"shard_rows": 256}}
    sets = runs / SETS
    sets.mkdir(exist_ok=True)
    (sets / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    if not (sets / name / PAGE).is_file():  # the last file of a run
        command("annotate", "--config", str(sets / f"{name}.yaml"), "--out", str(sets / name))
    return sets / name


def engines(base: Path) -> dict[str, dict[str, Any]]:
    """Return the engines of the study by name."""
    nucleus = {"max_new_tokens": 30, "min_new_tokens": 1, "sample": True, "top_p": 0.9, "repetition_penalty": 1.1}
    greedy = {"max_new_tokens": 47, "min_new_tokens": 2}
    score = expert("MatchScores", base, "retrieval")
    overall = expert("CheckpointCaptions", base, "caption", decoding=greedy)
    form = {"class_path": "lit_mm.annotation.checkpoints.BracketRegions"}
    regions = expert("CheckpointRegions", base, "caption", decoding=greedy, form=form)
    merge = {"class_path": "lit_mm.annotation.language_models.Template"}
    # Transcripts of the nano world may have fewer than the published 10 tokens
    captioner = expert("CheckpointCaptions", base, "caption", decoding=nucleus)
    capfilt, monkey = "lit_mm.annotation.capfilt.CapFilt", "lit_mm.annotation.monkey.Monkey"
    return {
        "capfilt": {"class_path": capfilt, "init_args": {"captioner": captioner, "filter": score}},
        "captioner": {"class_path": capfilt, "init_args": {"captioner": captioner}},
        "plain": {"class_path": monkey, "init_args": {"overall": overall, "merge": merge}},
        "monkey": {
            "class_path": monkey,
            "init_args": {"overall": overall, "regions": regions, "score": score, "merge": merge},
        },
    }


def hits(runs: Path, name: str, pages: int, seed: int) -> tuple[list[float], list[str]]:
    """Return 1 or 0 for the first text of every held-out page and the first page of every text, and their pages."""
    record = runs / f"{name}-hits-{pages}.json"
    if not record.is_file():
        source = NanoSource("captions", pages, split="heldout", seed=seed, skills=SKILLS, questions=1)
        module = open_model(str(runs / name), stage="pretrain")
        predictions = examine(module, [source[number] for number in range(pages)]).predictions
        final = [entry for entry in predictions if ", by contrast" not in entry.document.skill]
        content = {
            "hits": [float(entry.correct) for entry in final],
            "pages": [entry.document.id for entry in final],
        }
        write_whole(record, json.dumps(content))
    content = json.loads(record.read_text())
    return content["hits"], content["pages"]


def drop_rates(folder: Path, noisy: Sequence[bool]) -> dict[bool, list[float]]:
    """Return for planted noise (True) and true captions (False) whether the filter dropped each."""
    plan = json.loads((folder / "engine.json").read_text())
    drops: dict[bool, list[float]] = {True: [], False: []}
    for account in read_accounts(folder, -(-plan["rows"] // plan["shard_rows"])):
        for statement in account["statements"]:
            if statement["kind"] == WEB:
                drops[noisy[account["row"]]].append(float(not statement["kept"]))
    return drops


def verdict(comparison: Comparison) -> str:
    """Say whether a difference above 0 shows."""
    if comparison.interval.low > 0:
        return "shown"
    return "not shown: it is the other way round" if comparison.interval.high < 0 else "not shown"


def report(runs: Path, noisy: Sequence[bool], pages: int, seed: int) -> str:
    """Write the results as Markdown."""
    drops = drop_rates(runs / SETS / "capfilt", noisy)
    lines = ["| captions | number | dropped by the filter | 95 % interval |", "|---|---|---|---|"]
    for kind, label in ((True, "planted noise"), (False, "true")):
        values = drops[kind]
        interval = bootstrap_interval(values, [str(number) for number in range(len(values))])
        share = sum(values) / len(values)
        lines.append(f"| {label} | {len(values)} | {share:.1%} | {interval.low:.1%} to {interval.high:.1%} |")
    ledger = json.loads((runs / SETS / "capfilt/ledger.json").read_text())
    ratios = ", ".join(f"{kind} {counts['noise_ratio']:.1%}" for kind, counts in ledger["texts"].items())
    lines += ["", f"Noise ratios: {ratios}.", "", "| trained on | recall at 1 | 95 % interval |", "|---|---|---|"]
    scores = {name: hits(runs, name, pages, seed) for name in KINDS}
    for name, (values, groups) in scores.items():
        interval = bootstrap_interval(values, groups)
        lines.append(f"| {name} | {sum(values) / len(values):.1%} | {interval.low:.1%} to {interval.high:.1%} |")
    lines += ["", "| claim | difference | 95 % interval | |", "|---|---|---|---|"]
    for claim, worse, better in CLAIMS:
        comparison = paired_bootstrap(scores[worse][0], scores[better][0], scores[worse][1])
        interval = f"{comparison.interval.low:+.1%} to {comparison.interval.high:+.1%}"
        lines.append(f"| {claim} | {comparison.difference:+.1%} | {interval} | {verdict(comparison)} |")
    lines += ["", f"One seed, {pages} held-out pages. The intervals are over pages; they do not cover the seed."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/engines"))
    parser.add_argument("--pages", type=int, default=1500, help="web pages")
    parser.add_argument("--human", type=int, default=400, help="pages with human captions")
    parser.add_argument("--heldout", type=int, default=300, help="held-out pages")
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps of a pre-training")
    parser.add_argument("--noise", type=float, default=0.4, help="share of the web captions that is planted noise")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side_by_side", type=int, default=2, help="new models that train at the same time")
    choices = parser.parse_args()
    if choices.side_by_side < 1:
        parser.error(f"--side_by_side is at least 1, got {choices.side_by_side}")
    runs: Path = choices.runs.absolute()
    runs.mkdir(parents=True, exist_ok=True)
    try:
        agree(runs, {key: getattr(choices, key) for key in ("pages", "human", "steps", "noise", "seed")})
    except UserError as error:
        parser.error(str(error))
    noisy = write_pages(runs / WEB, choices.pages, first=0, noise=choices.noise, seed=choices.seed)
    write_pages(runs / HUMAN, choices.human, first=choices.pages, noise=0.0, seed=choices.seed)
    web, human = corpus(WEB, runs / WEB, "folder"), corpus(HUMAN, runs / HUMAN, "folder")
    base = fit(runs, "base", recipe([web, human], human, choices.steps, finetunes=True))
    folders = {name: annotate(runs, name, engine, [web]) for name, engine in engines(base).items()}

    def shards(engine: str, subset: str) -> list[dict[str, str]]:
        """Return the data set of an engine; nothing if no text passed."""
        if not json.loads((folders[engine] / "ledger.json").read_text())["subsets"][subset]:
            print(f"{engine}: no {subset} text passed; the model is trained without them")
            return []
        return [corpus(f"{engine}_{subset}", folders[engine] / f"{subset}-*.tar", "captions")]

    corpora = {
        "noisy": [web],
        "filtered": shards("capfilt", WEB),
        "captioned": [web, *shards("captioner", "synthetic")],
        "both": [*shards("capfilt", WEB), *shards("capfilt", "synthetic")],
        "plain": shards("plain", "described"),
        "described": shards("monkey", "described"),
    }
    threads = max(1, (os.cpu_count() or 1) // choices.side_by_side)

    def train(name: str) -> None:
        fit(runs, name, recipe([*corpora[name], human], human, choices.steps, finetunes=False), threads=threads)

    with ThreadPoolExecutor(choices.side_by_side) as pool:
        list(pool.map(train, KINDS))  # raises the first failure; trainings that have not begun are cancelled
    text = report(runs, noisy, choices.heldout, choices.seed)
    write_whole(runs / "report.md", text)
    print(text)


if __name__ == "__main__":
    main()
