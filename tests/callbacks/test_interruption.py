"""Signals end a run at a step boundary, on all ranks, and the same command again continues exactly."""

from __future__ import annotations

import os
import pty
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lit_mm.callbacks.checkpointing import Checkpointing
from lit_mm.callbacks.interruption import Interruption
from lit_mm.callbacks.metrics_csv import read_metrics
from lit_mm.run.interruption import CTRL_C, HEARD, REQUEUE, Interrupted, requeue, slurm_job
from tests.signals import Job, run_all

PAIR = {"ranks": 2, "workers": 1}
INTERRUPTED = {  # folder -> the launch that is ended, its exit code, and what it says
    "SIGTERM": (Job("SIGTERM", 1, "SIGTERM", 0, "pretrain 3", 1), REQUEUE, "after step 3 of 5 of stage 'pretrain'"),
    "Ctrl+C": (Job("Ctrl+C", 1, "SIGINT", 0, "finetune 2", 2), CTRL_C, "after step 2 of 5 of stage 'finetune'"),
    "at the end of a stage": (
        Job("at the end of a stage", 1, "SIGTERM", 0, "pretrain end"),
        REQUEUE,
        "after step 5 of 5 of stage 'pretrain'",
    ),
    "between stages": (Job("between stages", 1, "SIGUSR1", 0, "finetune start"), REQUEUE, "outside training"),
    "one of two ranks": (
        Job("one of two ranks", event="SIGUSR1", rank=1, place="pretrain 2", **PAIR),
        REQUEUE,
        "stopped by SIGUSR1 after step 2 of 5 of stage 'pretrain'",
    ),
    "one of two ranks, one step later": (
        Job("one of two ranks, one step later", event="SIGUSR1", rank=1, place="pretrain 2", reads_late=True, **PAIR),
        REQUEUE,
        "stopped by SIGUSR1 after step 3 of 5 of stage 'pretrain'",
    ),
    "both ranks": (
        Job("both ranks", event="SIGTERM", rank=-1, place="finetune 4", **PAIR),
        REQUEUE,
        "after step 4 of 5 of stage 'finetune'",
    ),
    "SIGHUP": (Job("SIGHUP", 1, "SIGHUP", 0, "finetune 3"), REQUEUE, "stopped by SIGHUP after step 3 of 5 of stage"),
    "ZeRO-2": (
        Job("ZeRO-2", event="SIGTERM", rank=1, place="finetune 2", strategy="zero2", **PAIR),
        REQUEUE,
        "after step 2 of 5 of stage 'finetune'",
    ),
}

# The time limit passes on the clock of rank 1 alone: strategy, moment, what else happens, and what is said
LATE = [
    ("ddp", "pretrain 3", "", "after step 3 of 5 of stage 'pretrain'"),
    ("ddp", "pretrain 5", "", "after step 5 of 5 of stage 'pretrain'"),
    ("ddp", "pretrain end", "", "after step 5 of 5 of stage 'pretrain'"),
    ("ddp", "finetune start", "", "after step 1 of 5 of stage 'finetune'"),
    ("ddp", "finetune 5", "", "after step 5 of 5 of stage 'finetune'"),
    ("ddp", "pretrain 3", "finished", "after step 3 of 5 of stage 'pretrain'"),
    ("zero2", "pretrain 3", "", "after step 3 of 5 of stage 'pretrain'"),
    ("zero2", "pretrain 5", "", "after step 5 of 5 of stage 'pretrain'"),
    ("zero3", "pretrain end", "", "after step 5 of 5 of stage 'pretrain'"),
    ("zero3", "finetune start", "", "after step 1 of 5 of stage 'finetune'"),
]
for strategy, place, besides, outcome in LATE:
    event = ", ".join(filter(None, ["late", besides]))
    late = Job(f"{strategy}, {event} at {place}", 2, event, 1, place, strategy=strategy)
    INTERRUPTED[late.folder] = (late, REQUEUE, f"stopped by trainer.max_time {outcome}, which is saved")

CORE = ("SIGTERM", "one of two ranks")
CASES = [pytest.param(name, marks=[] if name in CORE else pytest.mark.distributed) for name in INTERRUPTED]


def unbroken(job: Job) -> str:
    """Folder of a run that is not interrupted."""
    return f"unbroken {job.ranks} {job.strategy} {ending(job)}"


def ending(job: Job) -> str:
    """The event by which a callback ends a stage, if there is one: it is no interruption."""
    return "finished" if "finished" in job.event else ""


@pytest.fixture(scope="module")
def ended(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[Path, dict[str, list[list[int]]]]:
    """Folder of all interrupted runs, and the exit codes of the launches of each run."""
    folder = tmp_path_factory.mktemp("signals")
    here = [item for item in request.session.items if item.module is request.module and "ended" in item.fixturenames]
    chosen = dict.fromkeys(item.callspec.params["name"] for item in here)
    broken = [INTERRUPTED[name][0] for name in chosen]
    again = [Job(job.folder, ranks=job.ranks, strategy=job.strategy) for job in broken]
    whole = {
        unbroken(job): replace(job, folder=unbroken(job), event=ending(job), place=job.place if ending(job) else "")
        for job in broken
    }
    jobs = [*whole.values(), *broken, *again]
    codes: dict[str, list[list[int]]] = {}
    for job, code in zip(jobs, run_all(jobs, folder), strict=True):
        codes.setdefault(job.folder, []).append(code)
    return folder, codes


@pytest.mark.parametrize("name", CASES)
def test_a_signal_ends_every_rank_after_the_same_step_with_its_exit_code(ended, name):
    folder, codes = ended
    job, code, said = INTERRUPTED[name]
    assert codes[name] == [[code] * job.ranks, [0] * job.ranks]
    for rank in range(job.ranks):
        assert said in (folder / f"{name}.stderr-{rank}").read_text()


@pytest.mark.parametrize("name", CASES)
def test_the_same_command_again_continues_to_the_last_bit(ended, name):
    folder, _ = ended

    def figures(run: str) -> list[tuple]:
        return [(row["step"], row["stage"], row["loss"]) for row in read_metrics(folder / run / "metrics.csv")]

    job = INTERRUPTED[name][0]
    ranks, whole = job.ranks, unbroken(job)
    assert figures(name) == figures(whole)
    for rank in range(ranks):  # no micro-batch was made twice
        file = f"ledger-{ranks}-{rank}.txt" if ranks > 1 else "ledger.txt"
        assert (folder / name / file).read_text() == (folder / whole / file).read_text()


def listening(tmp_path: Path) -> Interruption:
    return Interruption(Checkpointing(tmp_path))


def test_outside_training_a_signal_ends_at_once_and_afterwards_all_handlers_are_back(tmp_path):
    before = [signal.getsignal(one) for one in HEARD]
    with pytest.raises(Interrupted) as left, listening(tmp_path):
        os.kill(os.getpid(), signal.SIGTERM)
    assert left.value.code == REQUEUE and not left.value.wants_requeue
    assert [signal.getsignal(one) for one in HEARD] == before


def test_while_a_run_is_leaving_it_is_not_ended_a_second_time(tmp_path):
    with pytest.raises(Interrupted), listening(tmp_path) as interruption:
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # by srun, when another rank has ended
            assert interruption.received.keys() == {signal.SIGUSR1, signal.SIGTERM}


def test_a_second_ctrl_c_ends_at_once_but_not_one_that_a_terminal_and_a_launcher_both_deliver(tmp_path):
    with listening(tmp_path) as interruption:
        interruption.training = True
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.wants_to_stop()
        interruption.received[signal.SIGINT] -= 3
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


CLOSED = """
import os, sys, time
from lit_mm.callbacks.checkpointing import Checkpointing
from lit_mm.callbacks.interruption import Interruption
with Interruption(Checkpointing(sys.argv[1])) as interruption:
    interruption.training = True
    print("ready", flush=True)
    while not interruption.wants_to_stop():
        time.sleep(0.05)
    print("saving", flush=True)  # as observers do
    open(os.path.join(sys.argv[1], "saved"), "w").close()
"""


def test_a_run_whose_terminal_is_closed_still_saves(tmp_path):
    process, terminal = pty.fork()
    if process == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
        os.execve(sys.executable, [sys.executable, "-c", CLOSED, str(tmp_path)], os.environ | {"PYTHONPATH": "."})
    text = b""
    while b"ready" not in text:
        text += os.read(terminal, 1000)
    os.close(terminal)  # the kernel sends SIGHUP, and every later write to the terminal fails
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert (tmp_path / "saved").exists()


def test_under_nohup_sighup_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listening(tmp_path) as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interruption.wants_to_stop()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_rank_0_requeues_but_not_on_a_sigterm_that_may_come_from_a_failing_rank():
    assert Interrupted({signal.SIGUSR1, signal.SIGTERM}, "").wants_requeue
    assert Interrupted({signal.SIGTERM}, "", together=True).wants_requeue
    assert not Interrupted({signal.SIGUSR1, signal.SIGTERM}, "", rank=1, together=True).wants_requeue
    assert not Interrupted({signal.SIGTERM}, "").wants_requeue
    assert not Interrupted({signal.SIGINT}, "", together=True).wants_requeue
    assert not Interrupted({signal.SIGHUP}, "", together=True).wants_requeue
    assert Interrupted({signal.SIGINT, signal.SIGTERM}, "").code == REQUEUE


def test_a_task_of_a_job_array_is_requeued_alone():
    assert slurm_job({"SLURM_JOB_ID": "71"}) == "71"
    assert slurm_job({"SLURM_JOB_ID": "73", "SLURM_ARRAY_JOB_ID": "71", "SLURM_ARRAY_TASK_ID": "2"}) == "71_2"
    assert slurm_job({}) is None and requeue({}) == ""


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ('echo JobState=RUNNING Reason=None; echo "$@" > asked', "SLURM job 71 is requeued."),
        (
            "echo JobState=COMPLETING; [ $1 = show ] || exit 1",
            "SLURM job 71 is COMPLETING and is left so; to go on, requeue it by hand: scontrol requeue 71",
        ),
        (
            "echo disabled >&2; exit 1",
            "SLURM job 71 could not be requeued (disabled). Was it submitted with --requeue?",
        ),
    ],
)
def test_what_scontrol_answers_is_told(tmp_path, monkeypatch, script, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert requeue({"SLURM_JOB_ID": "71"}) == said
    if "asked" in script:
        assert (tmp_path / "asked").read_text() == "requeue 71\n"


def test_without_scontrol_the_user_is_told_what_to_type(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert requeue({"SLURM_JOB_ID": "71"}).endswith("requeue it by hand: scontrol requeue 71")
