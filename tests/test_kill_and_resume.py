"""`fit` on the real command line continues its stream after `kill -9`, on other numbers of workers and ranks.

Every run has a packed mixture, accumulation, and several epochs. A core set runs by default; the marker `slow` adds all
combinations of 0, 2 and 3 workers and 1 and 2 ranks.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

from lit_mm.callbacks.metrics_csv import read_metrics
from lit_mm.checkpoints import manifest, reading
from tests.faulty import write
from tests.kills import KILL, Launch, arguments_of, free_port, launch_all, outlives
from tests.tiny import MODEL, PARTS

ROWS = 4  # of an optimizer step, one in a micro-batch
STAGES = ("pretrain", "finetune")
Split = tuple[int, int]  # ranks, workers
# Where the first launch dies. An epoch of the mixture fills less than three steps: every stage crosses two of its ends
PLACES = [f"pretrain step {n}" for n in range(1, 7)] + [f"finetune step {n}" for n in range(1, 7)]
PLACES += ["pretrain end", "finetune start"]
CORE: list[tuple[Split, Split, str]] = [
    ((1, 3), (2, 0), "finetune step 3"),
    ((2, 0), (2, 2), "pretrain step 5"),
]
SPLITS = list(product((1, 2), (0, 2, 3)))
ALL = [(*pair, PLACES[n % len(PLACES)]) for n, pair in enumerate(product(SPLITS, SPLITS))]


RISE = {"class_path": "lit_mm.stages.Cosine", "init_args": {"warmup": 0.3}}


def name_of(before: Split, after: Split, kill: str) -> str:
    return "{}x{} to {}x{}, {}".format(*before, *after, kill)


def write_recipe(folder: Path, data: Path) -> str:
    """Write a recipe with a run that records sample ids in `folder`. It may not change between launches."""
    folder.mkdir(exist_ok=True)
    sources = [{"source": {"format": "llava", "path": str(data / f"{name}.jsonl")}} for name in ("chat", "words")]
    frozen = {part: {"lr": 1e-2} for part in PARTS if part != "language"}
    recipe: dict[str, Any] = {
        "model": {**MODEL, "init_args": {**MODEL["init_args"], "dropout": 0.1}},
        "stages": [
            {"name": "pretrain", "train": frozen, "max_steps": 6, "schedule": RISE},
            {"name": "finetune", "train": frozen | {"language": {"lr": 1e-2}}, "max_steps": 6},
        ],
        "data": {
            "class_path": "lit_mm.datamodules.mixture.Mixture",
            "init_args": {
                "sources": sources,
                "weights": "sqrt",
                "global_batch": ROWS,
                "row_tokens": 192,
                "window": 16,
                "too_long": "truncate",
            },
        },
        "trainer": {
            "callbacks": [
                {"class_path": "tests.kills.Kill"},
                {"class_path": "tests.tiny.Ledger", "init_args": {"path": str(folder / "ids.txt")}},
            ],
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return str(path)


def run_all(folder: Path, combinations: list[tuple[Split, Split, str]]) -> Path:
    """Run unbroken runs on one and two ranks, and a killed and resumed run for each combination."""
    write(folder / "data", count=24, each=0)

    def launch(name: str, split: Split, kill: str = "") -> Launch:
        config = write_recipe(folder / name, folder / "data")
        return Launch(str(folder / name), split[1], micro_batch=1, ranks=split[0], config=config, kill=kill)

    launches = [launch(f"unbroken {ranks}", (ranks, 0)) for ranks in (1, 2)]
    for before, after, kill in combinations:
        name = name_of(before, after, kill)
        launches += [launch(name, before, kill), launch(name, after)]
    launch_all(launches, folder)
    return folder


def stream(folder: Path) -> list[tuple[str, list[str]]]:
    """Read (stage, sorted sample ids) of every optimizer step; if a step was repeated, both must be the same."""
    steps: dict[tuple[int, int], dict[tuple[int, int, int], list[str]]] = {}
    for path in sorted(folder.glob("ids*.txt")):
        ranks, rank = (int(n) for n in path.stem.split("-")[1:]) if "-" in path.stem else (1, 0)
        for line in path.read_text().splitlines():
            stage, micro, *ids = line.split()
            step, turn = divmod(int(micro), ROWS // ranks)
            held = steps.setdefault((STAGES.index(stage), step), {})
            assert held.setdefault((ranks, rank, turn), ids) == ids
    found = []
    for (stage, _), held in sorted(steps.items()):
        whole = []
        for ranks in {ranks for ranks, _, _ in held}:
            parts = [ids for key, ids in held.items() if key[0] == ranks]
            if len(parts) == ROWS:  # a kill may have left a step half done
                whole.append(sorted(i for ids in parts for i in ids))
        assert whole
        assert all(one == whole[0] for one in whole)
        found.append((STAGES[stage], whole[0]))
    return found


def check_against_unbroken(runs: Path, before: Split, after: Split, kill: str) -> None:
    name, unbroken = name_of(before, after, kill), runs / f"unbroken {after[0]}"
    assert stream(runs / name) == stream(unbroken) == stream(runs / "unbroken 1")
    ours, theirs = read_metrics(runs / name / "metrics.csv"), read_metrics(unbroken / "metrics.csv")
    assert [(row["step"], row["stage"], row["tokens"]) for row in ours] == [
        (row["step"], row["stage"], row["tokens"]) for row in theirs
    ]
    assert len(ours) == 12
    account = (runs / name / "ledger.json").read_text()
    assert account == (unbroken / "ledger.json").read_text()
    if before[0] == after[0]:
        assert [row["loss"] for row in ours] == [row["loss"] for row in theirs]
        mine, other = (reading.read(manifest.find(f)).weights() for f in (runs / name, unbroken))
        assert all(torch.equal(mine[key], other[key]) for key in other)


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_all(tmp_path_factory.mktemp("core"), CORE)


@pytest.mark.parametrize(("before", "after", "kill"), CORE, ids=[name_of(*one) for one in CORE])
def test_a_killed_run_goes_on_with_the_same_stream(core: Path, before: Split, after: Split, kill: str) -> None:
    check_against_unbroken(core, before, after, kill)


def test_those_runs_crossed_the_ends_of_epochs_and_packed(core: Path) -> None:
    steps = stream(core / "unbroken 1")
    assert len({i for _, ids in steps for i in ids}) == 36  # all of both sources
    for stage in STAGES:
        drawn = [i for name, ids in steps if name == stage for i in ids]
        assert len(drawn) > 2 * 36  # two epochs and a bit
        assert {i.split("/")[0] for i in drawn} == {"chat", "words"}
    assert min(len(ids) for _, ids in steps) > ROWS


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_all(tmp_path_factory.mktemp("every"), ALL)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after", "kill"), ALL, ids=[name_of(*one) for one in ALL])
def test_all_workers_and_ranks_before_and_after_a_kill(every: Path, before: Split, after: Split, kill: str) -> None:
    check_against_unbroken(every, before, after, kill)


@pytest.mark.slow
def test_torchrun_killed_from_outside_at_any_moment_goes_on(tmp_path: Path) -> None:
    """Two ranks of `python -m lit_mm fit` under torchrun are killed twice at random moments and then finish."""
    write(tmp_path / "data", count=24, each=0)
    root = str(Path(__file__).parent.parent)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root, KILL: ""}

    def start(name: str, workers: int) -> subprocess.Popen[bytes]:
        config = write_recipe(tmp_path / name, tmp_path / "data")
        launch = Launch(str(tmp_path / name), workers, micro_batch=1, ranks=2, config=config)
        torchrun = ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()), "-m", "lit_mm"]
        command = [sys.executable, "-m", *torchrun, *arguments_of(launch)]
        with (tmp_path / f"{name}.log").open("ab") as log:
            return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log, process_group=0)

    def finish(name: str, workers: int) -> None:
        running = start(name, workers)
        try:
            assert not running.wait(timeout=900), (tmp_path / f"{name}.log").read_text()[-3000:]
        finally:
            assert not outlives(running.pid, seconds=20), "a process outlived its launch"

    finish("unbroken", 2)
    metrics = tmp_path / "killed" / "metrics.csv"
    for steps, workers in ((3, 2), (8, 3)):
        running = start("killed", workers)
        while running.poll() is None and (not metrics.exists() or len(metrics.read_text().splitlines()) <= steps):
            time.sleep(0.01)
        assert running.poll() is None, (tmp_path / "killed.log").read_text()[-3000:]
        # torchrun's ranks have sessions of their own: a signal to its group would leave them at work
        launched = [*psutil.Process(running.pid).children(recursive=True), psutil.Process(running.pid)]
        assert len(launched) > 2
        for process in launched:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        running.wait()
        assert not psutil.wait_procs(launched, timeout=20)[1], "a process outlived its launch"
    finish("killed", 0)
    assert stream(tmp_path / "killed") == stream(tmp_path / "unbroken")
    losses = [[row["loss"] for row in read_metrics(tmp_path / name / "metrics.csv")] for name in ("killed", "unbroken")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 12
