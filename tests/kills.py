"""Launches of a tiny recipe that end as they are told to: `python -m tests.kills JOBS.json`.

The jobs run one after the other, each in a process of its own that is forked before torch has started a thread, so the
imports are paid once. Prints one exit status a line, as `os.waitstatus_to_exitcode` gives it (-9: killed).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import torch

from lit_mm import checkpoints
from lit_mm.cli import main as command_line
from lit_mm.commands import fit  # noqa: F401 - imported once, before the forks
from lit_mm.module import MultimodalModule
from tests.faulty import FaultyMixture
from tests.tiny import run_recipe, stages, xcomposer2

KILL = "LIT_MM_TESTS_KILL_AT"


@dataclass(frozen=True)
class Launch:
    """One launch of the command.

    Attributes:
        folder: run folder; a launch in the folder of a killed one resumes it.
        workers, micro_batch: of the data module.
        ranks: processes, joined by gloo.
        config: a recipe that the real command line is given, in place of the tiny one that is run in the process. Its
            callbacks name `tests.kills.Kill`, and its checkpoints come every two steps.
        faulty: folder of a mixture with bad samples (`tests.faulty`), in place of the plain documents.
        policy: other arguments of its data module.
        dropout: of the partial LoRA.
        kill: where it dies, by `kill -9`: "pretrain step 3" (the optimizer has stepped, nothing is written),
            "finetune start", "pretrain end" (before the stage's last checkpoint), "fsync 4" (the fourth of the run; a
            checkpoint makes two: its file under the temporary name, then the folder). "" for never.
    """

    folder: str
    workers: int = 0
    micro_batch: int = 2
    dropout: float = 0.1
    kill: str = ""
    ranks: int = 1
    config: str = ""
    faulty: str = ""
    policy: dict[str, Any] = field(default_factory=dict)
    steps: int = 5


def launch_all(launches: list[Launch], folder: Path) -> None:
    """Run the launches in order in one fresh interpreter. Fails where one ends otherwise than it should, or where a
    loader's worker outlives its killed trainer."""
    jobs, said = folder / "jobs.json", folder / "stderr.txt"
    jobs.write_text(json.dumps([asdict(launch) for launch in launches]))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-m", "tests.kills", str(jobs)]
    with (folder / "stdout.txt").open("w+") as out, said.open("w") as err:  # a pipe would wait for orphans, too
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=err, start_new_session=True)
        try:
            assert not server.wait(timeout=300 + 60 * len(launches)), said.read_text()[-4000:]
        finally:
            orphans = outlives(server.pid, seconds=20)
        out.seek(0)
        codes = [int(line) for line in out.read().split()]
    wrong = [job for job, code in zip(launches, codes, strict=True) if code != (-signal.SIGKILL if job.kill else 0)]
    assert not wrong, f"{codes}: {wrong}\n{said.read_text()[-4000:]}"
    assert not orphans, "a worker outlived its trainer"


def outlives(group: int, seconds: float) -> bool:
    """Is a process of the group still there after a while? Then it is ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    os.killpg(group, signal.SIGKILL)
    return True


class Kill(L.Callback):
    """Kills its process where the launch says; it stands in the environment, as a run may not change its config."""

    def _die(self, module: MultimodalModule, place: str) -> None:
        if f"{module.stage.name} {place}" == os.environ[KILL]:
            kill()

    def on_train_start(self, trainer: L.Trainer, pl_module: MultimodalModule) -> None:
        self._die(pl_module, "start")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: MultimodalModule, *_: object) -> None:
        self._die(pl_module, f"step {trainer.global_step}")

    def on_train_end(self, trainer: L.Trainer, pl_module: MultimodalModule) -> None:
        self._die(pl_module, "end")


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_fsync(number: int) -> None:
    left = iter(range(number - 1, -1, -1))

    def fsync(descriptor: int) -> None:
        if next(left) == 0:
            kill()
        os.fsync(descriptor)

    checkpoints.os = SimpleNamespace(**vars(os) | {"fsync": fsync})


def run(launch: Launch) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    os.environ[KILL] = launch.kill
    if launch.kill.startswith("fsync"):
        kill_at_fsync(int(launch.kill.split()[1]))
    if launch.config:
        command_line(arguments_of(launch))
        return
    options: dict[str, Any] = {"num_workers": launch.workers, "micro_batch": launch.micro_batch}
    if launch.faulty:
        options |= {"data_class": FaultyMixture, "place": launch.faulty} | launch.policy
    module = xcomposer2(dropout=launch.dropout)
    recipe = stages(steps=launch.steps)
    run_recipe(module, recipe, Path(launch.folder), callbacks=[Kill()], every=2, ranks=launch.ranks, **options)


def arguments_of(launch: Launch) -> list[str]:
    """The command line of a launch."""
    options = {
        "config": launch.config,
        "run_dir": launch.folder,
        "checkpoint_every": 2,
        "track": "false",
        "data.init_args.num_workers": launch.workers,
        "data.init_args.micro_batch": launch.micro_batch,
        "trainer.accelerator": "cpu",
        "trainer.devices": launch.ranks,
        "trainer.strategy": "ddp" if launch.ranks > 1 else "auto",
    }
    return ["fit", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


def main(jobs: str) -> None:
    for job in json.loads(Path(jobs).read_text()):
        sys.stdout.flush()
        launch, port = Launch(**job), free_port()
        children = [start(launch, rank, port) for rank in range(launch.ranks)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        # A rank that waits for one that was killed a moment before ends by an error of its own
        print(-signal.SIGKILL if -signal.SIGKILL in codes else max(codes))


def start(launch: Launch, rank: int, port: int) -> int:
    """One process of a launch."""
    child = os.fork()
    if child:
        return child
    try:
        os.dup2(2, 1)  # what a run prints is not an exit code
        if launch.ranks > 1:  # what torchrun sets
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "kills"}
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            os.environ |= {"WORLD_SIZE": str(launch.ranks), "LOCAL_WORLD_SIZE": str(launch.ranks)}
        run(launch)
        sys.stderr.flush()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main(sys.argv[1])
