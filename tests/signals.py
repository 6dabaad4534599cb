"""This program runs a tiny recipe that gets signals or stalls: `python -m tests.signals JOBS.json`.

As in `tests.kills`, every process is forked from one that has done the imports. It prints one line per job: the exit
statuses of the ranks, and the number of ranks that left a process behind.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lit_mm.callbacks import early_end, steps
from lit_mm.callbacks.checkpointing import Checkpointing
from lit_mm.callbacks.early_end import EarlyEnd
from lit_mm.callbacks.interruption import Interruption
from lit_mm.callbacks.metrics_csv import MetricsCSV
from lit_mm.callbacks.watchdog import Watchdog
from lit_mm.module import MultimodalModule
from lit_mm.run.folder import RunFolder
from lit_mm.run.stages import run_stages
from tests.kills import free_port, outlives
from tests.preloaded import run_program
from tests.tiny import Documents, Ledger, stages, trainer, xcomposer2


@dataclass(frozen=True)
class Job:
    """One launch of a recipe of two stages with five steps each.

    Attributes:
        folder: run folder.
        ranks: number of processes.
        event: event to inject: the name of a signal, "sleep", "lock" (sleep while holding the interpreter lock), "late"
            (the time limit passes on the clock of this rank), "finished" (a callback ends the stage), or "late,
            finished" (both).
        rank: rank that gets the event, -1 for all.
        place: moment of the event: "pretrain 3" is inside the third step of the stage, "finetune start" between stages.
        seconds: time limit of the watchdog.
        strategy: strategy of the Trainer; by default ddp on several ranks.
        reads_late: if True, figures of a step are read one step later, as on a GPU.
    """

    folder: str
    ranks: int = 1
    event: str = ""
    rank: int = 0
    place: str = ""
    workers: int = 0
    seconds: float = 300.0
    strategy: str = ""
    reads_late: bool = False


class Event(L.Callback):
    def __init__(self, job: Job, rank: int, interruption: Interruption) -> None:
        self.job, self.rank, self.interruption = job, rank, interruption

    def _happens(self, place: str, trainer: L.Trainer) -> None:
        if place != self.job.place or self.job.rank not in (-1, self.rank):
            return
        events = self.job.event.split(", ")
        if "late" in events:
            self.interruption.deadline = -math.inf
        if "finished" in events:
            trainer.should_stop = True
        if not {"late", "finished"}.isdisjoint(events):
            return
        if self.job.event == "sleep":
            time.sleep(120)
        elif self.job.event == "lock":
            ctypes.PyDLL(None).sleep(120)  # unlike CDLL, it keeps the lock
        else:
            # To the workers, too, as a terminal, a launcher or SLURM does, and like theirs not from the trainer
            kill = ["kill", f"-{signal.Signals[self.job.event].value}", "--", f"-{os.getpgrp()}"]
            subprocess.run(kill, check=True, start_new_session=True)

    def on_fit_start(self, trainer: L.Trainer, pl_module: MultimodalModule) -> None:
        self._happens(f"{pl_module.stage.name} start", trainer)

    def on_before_backward(self, trainer: L.Trainer, pl_module: MultimodalModule, loss: Any) -> None:
        self._happens(f"{pl_module.stage.name} {trainer.global_step + 1}", trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: MultimodalModule) -> None:
        self._happens(f"{pl_module.stage.name} end", trainer)


def run(job: Job, rank: int) -> None:
    torch.set_num_threads(1)
    if job.reads_late:
        steps.reads_late = lambda trainer: True
        early_end.may_log = lambda callback: False  # `Event` reads no figures
    folder = RunFolder(Path(job.folder))
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    checkpointing = Checkpointing(folder.checkpoints, every=100)
    interruption = Interruption(checkpointing)
    metrics, ledger = MetricsCSV(folder.path / "metrics.csv"), Ledger(folder.path / "ledger.txt")
    event = Event(job, rank, interruption)
    observers = [Watchdog(job.seconds), event, ledger, metrics, EarlyEnd(folder.path), checkpointing, interruption]
    with interruption:
        run_stages(
            xcomposer2(dropout=0.1),
            stages(steps=5),
            folder,
            data_of=lambda stage: Documents(micro_batch=1, num_workers=job.workers, **stage.data),
            trainer_of=partial(trainer, observers, ranks=job.ranks, strategy=job.strategy or None),
            seed=0,
        )


def start(job: Job, rank: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    try:
        os.setpgid(0, 0)  # a group of its own, for signals to it and to its workers
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
        said = os.open(f"{job.folder}.stderr-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 2)
        os.dup2(said, 1)
        if job.ranks > 1:  # what torchrun sets
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "signals"}
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            os.environ |= {"WORLD_SIZE": str(job.ranks), "LOCAL_WORLD_SIZE": str(job.ranks)}
        run(job, rank)
        code = 0
    except SystemExit as end:
        print(end, file=sys.stderr)
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)


def main(jobs: str) -> None:
    for one in json.loads(Path(jobs).read_text()):
        sys.stdout.flush()
        job, port = Job(**one), free_port()
        children = [start(job, rank, port) for rank in range(job.ranks)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        left = [child for child in children if outlives(child, seconds=10)]
        print(json.dumps({"codes": codes, "left": len(left)}))


def run_all(jobs: list[Job], folder: Path) -> list[list[int]]:
    """Run jobs. Returns the exit codes of the ranks of every job.

    It fails if a process is left running, loader workers included.
    """
    listed = folder / "jobs.json"
    listed.write_text(json.dumps([asdict(job) for job in jobs]))
    done = run_program(["-m", "tests.signals", str(listed)], cwd=folder, timeout=1500)
    assert not done.returncode, done.stderr[-4000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert not any(result["left"] for result in results), results
    return [result["codes"] for result in results]


if __name__ == "__main__":
    main(sys.argv[1])
