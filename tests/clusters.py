"""Simulated clusters for tests: two network namespaces are two nodes, and scripts replace the commands of SLURM."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from lit_mm.callbacks.metrics_csv import read_metrics
from tests.tiny import MODEL

ROOT = Path(__file__).parent.parent
PATIENCE = 600.0  # seconds; a busy machine takes minutes to import torch


def recipe(folder: Path, steps: int, **changes: Any) -> str:
    """Write recipe.yaml with two stages of `steps` optimizer steps of four rows. Returns the path."""
    config = {
        "model": MODEL,
        "stages": [
            {
                "name": "pretrain",
                "train": {"connector": {"lr": 1e-3}, "partial_lora": {"lr": 1e-3}},
                "max_steps": steps,
            },
            {"name": "finetune", "train": {"language": {"lr": 1e-3}}, "max_steps": steps},
        ],
        "data": {
            "class_path": "lit_mm.datamodules.nano.NanoDocuments",
            "init_args": {"documents": 16, "global_batch": 4, "micro_batch": 2, "heldout_documents": 0},
        },
        "trainer": {"accelerator": "cpu", "precision": "32-true"},
        "track": False,
        "checkpoint_every": 4,
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def environment(**more: str) -> dict[str, str]:
    """Environment of a subprocess: one thread, no GPU, this repository on the path."""
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)} | more


def losses(folder: Path) -> list[tuple[int, str, float]]:
    """Read (step, stage, loss) from metrics.csv of a run."""
    return [(row["step"], row["stage"], row["loss"]) for row in read_metrics(folder / "metrics.csv")]


def wait_for(what: Callable[[], bool], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def has_steps(folder: Path, steps: int) -> bool:
    file = folder / "metrics.csv"
    return file.exists() and file.read_text().count("\n") > steps


@contextmanager
def started(command: list[str], folder: Path, log: str, **env: str) -> Iterator[subprocess.Popen]:
    """Start a process in a new session; at the end of the block, all its children are killed."""
    with (folder / log).open("ab") as file:
        process = subprocess.Popen(
            command, cwd=folder, env=environment(**env), stdout=file, stderr=file, start_new_session=True
        )
    family = psutil.Process(process.pid)
    try:
        yield process
    finally:
        left = [family, *family.children(recursive=True)] if family.is_running() else []
        for one in left:
            if one.is_running():
                one.kill()
        process.wait()


# --- two nodes -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Node:
    """A network namespace with one address.

    Attributes:
        name: name of the namespace.
        link: name of the network device that connects to the other node.
    """

    name: str
    link: str
    address: str

    def command(self, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, *words]


def why_no_nodes() -> str:
    """Reason why this machine cannot create network namespaces; "" if it can."""
    if shutil.which("ip") is None:
        return "there is no `ip` command"
    if os.geteuid():
        return "network namespaces need root"
    probe = f"lit-mm-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode:
        return f"network namespaces are not allowed: {made.stderr.strip()}"
    try:
        link = ["ip", "link", "add", f"lmp{os.getpid()}", "type", "veth", "peer", "name", "peer", "netns", probe]
        linked = subprocess.run(link, capture_output=True, text=True)
        return f"no veth pair can be made: {linked.stderr.strip()}" if linked.returncode else ""
    finally:
        subprocess.run(["ip", "netns", "del", probe], check=True)  # takes the pair along


def remove(name: str) -> None:
    """End the processes in a namespace and delete it, and with it both ends of the veth pair."""
    for pid in subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split():
        os.kill(int(pid), signal.SIGKILL)
    subprocess.run(["ip", "netns", "del", name], check=True)


def sweep() -> None:
    """Remove namespaces left behind by tests that were killed."""
    listed = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
    for name, pid in re.findall(r"^(lit-mm-(\d+)-\d)\b", listed, re.MULTILINE):
        if not psutil.pid_exists(int(pid)):
            remove(name)


@contextmanager
def two_nodes() -> Iterator[tuple[Node, Node]]:
    """Two namespaces joined by a veth pair. They reach nothing outside, and are removed at the end."""
    tag = f"{os.getpid()}"
    nodes = tuple(Node(f"lit-mm-{tag}-{n}", f"lm{tag}n{n}", f"10.77.0.{n + 1}") for n in range(2))

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

    sweep()
    made = []
    try:
        for node in nodes:
            ip("netns", "add", node.name)
            made.append(node)
        ip(
            *("link", "add", nodes[0].link, "netns", nodes[0].name, "type", "veth"),
            *("peer", "name", nodes[1].link, "netns", nodes[1].name),
        )
        for node in nodes:
            for words in (
                ("addr", "add", f"{node.address}/24", "dev", node.link),
                ("link", "set", node.link, "up"),
                ("link", "set", "lo", "up"),
            ):
                ip("-n", node.name, *words)
        yield nodes
    finally:
        for node in made:
            remove(node.name)


# --- SLURM -----------------------------------------------------------------------------------------------------------
SRUN = f"""#!{sys.executable}
# Starts SLURM_NTASKS tasks of one node, hands signals on to all their processes, and ends with the worst exit code.
import os, signal, subprocess, sys
words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)
tasks = [
    subprocess.Popen(
        words,
        env=os.environ | {{"SLURM_PROCID": str(n), "SLURM_LOCALID": str(n), "SLURM_NODEID": "0"}},
        start_new_session=True,
    )
    for n in range(int(os.environ["SLURM_NTASKS"]))
]
def hand_on(number, frame):
    for task in tasks:
        if task.poll() is None:
            os.killpg(task.pid, number)
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, hand_on)
sys.exit(max(task.wait() % 256 for task in tasks))
"""
SCONTROL = """#!/bin/sh
case "$1" in
    show) [ "$2" = job ] && echo "   JobState=${SLURM_STATE:-RUNNING} Reason=None" || echo localhost ;;
    requeue) echo "$2" >> "$SLURM_LOG" ;;
    *) exit 1 ;;
esac
"""


def slurm(folder: Path, tasks: int, job: str) -> dict[str, str]:
    """Write scripts srun and scontrol into a folder. Returns the environment of a job script that finds them."""
    commands = folder / "slurm"
    commands.mkdir(exist_ok=True)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    return {
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "SLURM_LOG": str(folder / "requeued"),
        "SLURM_JOB_ID": job,
        "SLURM_JOB_NAME": "lit_mm",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NODELIST": "localhost",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_NNODES": "1",
        "SLURM_NTASKS": str(tasks),
        "SLURM_NTASKS_PER_NODE": str(tasks),
    }
