"""Several processes from the command line, by Lightning's launcher and by torchrun, share one run folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from copy import deepcopy
from pathlib import Path

import pytest
import yaml

from lit_mm.callbacks.metrics_csv import read_metrics
from lit_mm.checkpoints import manifest, reading
from lit_mm.commands.recipe import RecipeCLI
from lit_mm.errors import UserError
from lit_mm.run.agreement import agree
from tests.kills import free_port
from tests.preloaded import run_program
from tests.test_cli import TINY
from tests.tiny import trainer

ROOT = Path(__file__).parents[1]
ZERO3 = ["--trainer.strategy", "zero3", "--trainer.devices", "2", "--trainer.accelerator", "cpu"]
# By its class, so that no parameter stays whole and the examinations of a stage gather every layer
CUT = ["--trainer.strategy", "lit_mm.distributed.zero.ZeRO", "--trainer.strategy.stage", "3"]
CUT += ["--trainer.strategy.keep_whole", "0", "--trainer.devices", "2", "--trainer.accelerator", "cpu"]


def recipe(folder: Path) -> None:
    config = deepcopy(TINY) | {"track": False, "examine_documents": 2, "checkpoint_every": 1}
    config["model"]["init_args"]["language"]["init_args"]["activation_checkpointing"] = "full"
    config["stages"] = [
        {"name": "align", "train": {"connector": {"lr": 1e-3}}, "max_steps": 2},
        {"name": "all", "train": {part: {"lr": 1e-3} for part in ("connector", "language")}, "max_steps": 2},
    ]
    config["data"] = {**TINY["data"], "init_args": {"documents": 8, "heldout_documents": 2, "global_batch": 2}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def run(folder: Path, *command: str) -> str:
    kept = ("MASTER_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LIT_MM_AGREED")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(kept)}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.distributed
def test_zero3_is_one_key_and_its_run_is_evaluated_by_one_process(tmp_path: Path) -> None:
    recipe(tmp_path)
    run(tmp_path, sys.executable, "-m", "lit_mm", "fit", "--config", "tiny.yaml", *ZERO3)
    (folder,) = [path for path in (tmp_path / "runs" / "tiny").iterdir()]  # both ranks wrote into one
    assert [row["step"] for row in read_metrics(folder / "metrics.csv")] == [1, 2, 3, 4]
    saved = reading.read(manifest.find(folder))
    assert (saved.manifest["strategy"], saved.manifest["ranks"]) == ("ZeRO", 2)
    told = run(tmp_path, sys.executable, "-m", "lit_mm", "evaluate", "runs/latest", "--format", "json")
    overall = json.loads(told.splitlines()[-1])["accuracy"]["overall"]
    assert overall == json.loads((folder / "summary.json").read_text())["accuracy"]["overall"]


@pytest.mark.distributed
def test_the_ranks_of_torchrun_agree_on_the_run_folder_and_one_opens_the_run_of_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    run(tmp_path, sys.executable, *launcher, "-m", "lit_mm", "fit", "--config", "tiny.yaml", "--track=true", *CUT)
    (folder,) = [path for path in (tmp_path / "runs" / "tiny").iterdir()]
    assert [row["step"] for row in read_metrics(folder / "metrics.csv")] == [1, 2, 3, 4]
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 1


@pytest.mark.parametrize(
    ("options", "asked"), [([], "1: trainer.num_nodes 1 x trainer.devices 1"), (ZERO3, "2: trainer.num_nodes 1 x")]
)
def test_other_ranks_than_torchrun_started_are_refused_before_they_wait_for_each_other(
    options: list[str], asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    started = {"RANK": "2", "LOCAL_RANK": "0", "GROUP_RANK": "2", "WORLD_SIZE": "3", "TORCHELASTIC_RUN_ID": "x"}
    for name, value in (started | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}).items():
        monkeypatch.setenv(name, value)
    cli = RecipeCLI(["--config", "tiny.yaml", *options], "fit")
    with pytest.raises(UserError, match=f"torchrun started 3 processes, the recipe asks for {asked}"):
        cli.check_stages()
    monkeypatch.setenv("WORLD_SIZE", asked[0])
    cli.check_stages()


AGREES = """
import os
from tests.forked import run_ranks
from tests.tiny import trainer
from lit_mm.run.agreement import agree

read, write = os.pipe()

def work(rank):
    it = trainer(ranks=2)
    print(rank, agree(it, "run_dir", lambda: f"of {rank}"), agree(it, "resume", lambda: f"at {rank}"), flush=True)
    os.write(write, b"1") if rank else os.read(read, 1)  # the first rank holds what the other reads

run_ranks(work, 2)
"""


def test_what_the_first_rank_decides_reaches_the_others_before_they_are_joined() -> None:
    ended = run_program(["-c", AGREES])
    assert not ended.returncode, ended.stderr[-4000:]
    said = sorted(line for line in ended.stdout.splitlines() if line[:2] in ("0 ", "1 "))
    assert said == ["0 of 0 at 0", "1 of 0 at 0"]


def test_one_process_decides_alone() -> None:
    assert agree(trainer(), "run_dir", lambda: "mine") == "mine"


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_a_rank_that_survives_another_ends_in_one_line(tmp_path: Path, strategy: str) -> None:
    recipe(tmp_path)
    options = ["--trainer.strategy", strategy, "--trainer.devices", "2", "--trainer.accelerator", "cpu"]
    options += ["--run_dir", "run", "--stages.*.max_steps", "2000", "--checkpoint_every", "1000"]
    port, ranks = str(free_port()), []
    for rank in range(2):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "lost"}
        environment |= {name: str(rank) for name in ("RANK", "LOCAL_RANK", "GROUP_RANK")}
        environment |= {name: "2" for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
        words = [sys.executable, "-m", "lit_mm", "fit", "--config", "tiny.yaml", *options]
        ranks.append(subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        metrics = tmp_path / "run" / "metrics.csv"
        deadline = time.monotonic() + 240
        while not metrics.is_file() or len(read_metrics(metrics)) < 3:
            assert time.monotonic() < deadline and ranks[1].poll() is None, ranks[1].stderr.read()[-2000:]
            time.sleep(0.2)
        ranks[1].kill()
        _, text = ranks[0].communicate(timeout=120)
    finally:
        for process in ranks:
            process.kill()
    lines = [line for line in text.splitlines() if line.startswith("lit_mm: ")]
    assert ranks[0].returncode == 1
    assert len(lines) == 1 and "rank 0 lost its connection to another rank" in lines[0], text[-3000:]
    assert "in stage 'align', step " in lines[0]
    assert "Traceback" not in text
