"""One job at a time writes into a run folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from lit_mm.errors import UserError
from lit_mm.run import lock
from lit_mm.run.folder import RunFolder
from lit_mm.run.lock import BEAT, FILE, MISSED, FolderLock, Holder, launches_of, living_holder

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from lit_mm.run.lock import FolderLock
with FolderLock(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""
ELSEWHERE = Holder("node7", 4711, 1.7e9)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """Another process that has the folder."""
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()


def record(folder: Path, holder: Holder, age: float = 0.0) -> None:
    """What a job that was killed leaves, so many seconds after its last heartbeat."""
    (folder / FILE).write_text(json.dumps(asdict(holder)))
    os.utime(folder / FILE, (time.time() - age,) * 2)


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    constants = {name: getattr(fcntl, name) for name in ("LOCK_EX", "LOCK_NB")}
    monkeypatch.setattr(lock, "fcntl", SimpleNamespace(lockf=refuse, **constants))
    monkeypatch.setattr(lock, "SETTLING", 0.01)


def test_a_second_job_is_refused_in_one_line_that_says_whose_the_folder_is(tmp_path: Path, other) -> None:
    with pytest.raises(UserError) as refusal, FolderLock(tmp_path):
        pass
    message = str(refusal.value)
    assert f"is in use by process {other.pid} on {os.uname().nodename}, started 2" in message
    assert "--run_dir" in message and "\n" not in message
    with pytest.raises(UserError, match="is in use by"), FolderLock(tmp_path, take_over=True):
        pass  # a job that lives is not pushed out


def test_a_job_that_was_killed_leaves_no_lock(tmp_path: Path, other) -> None:
    other.kill()
    other.wait()
    assert (tmp_path / FILE).stat().st_size
    with FolderLock(tmp_path):
        assert Holder.of((tmp_path / FILE).read_bytes()) == Holder.current()


@pytest.mark.parametrize(("age", "moved", "lives"), [(0, 0, True), (0, 3600, True), (99, 0, True), (99, 3600, False)])
def test_a_job_lives_though_the_clock_was_set(tmp_path: Path, age: float, moved: float, lives: bool) -> None:
    """The system tells another start of a process when its clock was set; heartbeats go on by the new clock."""
    current = Holder.current()
    record(tmp_path, replace(current, started=current.started - moved), age * MISSED * BEAT)
    assert (living_holder(tmp_path) is not None) == lives


def test_a_killed_job_whose_exit_code_nobody_asks_for_is_dead(tmp_path: Path) -> None:
    process = subprocess.Popen(["true"])
    started = psutil.Process(process.pid).create_time()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended and stays a zombie
    record(tmp_path, replace(Holder.current(), process=process.pid, started=started))
    assert living_holder(tmp_path) is None
    process.wait()


def test_a_forked_worker_does_not_keep_the_lock_of_its_trainer(tmp_path: Path) -> None:
    program = HOLD.replace("    sys.stdin", "    import os\n    if not os.fork(): time.sleep(60)\n    sys.stdin")
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    process.stdout.readline()
    time.sleep(0.3)  # it forks
    process.kill()
    process.wait()
    with FolderLock(tmp_path):
        assert Holder.of((tmp_path / FILE).read_bytes()) == Holder.current()
    os.killpg(process.pid, 9)


def test_a_folder_is_free_again_after_a_run_and_for_the_same_process(tmp_path: Path) -> None:
    for _ in range(2):
        with FolderLock(tmp_path):
            assert Holder.of((tmp_path / FILE).read_bytes()) == Holder.current()
        assert (tmp_path / FILE).read_bytes() == b""


def test_without_locks_a_fresh_heartbeat_keeps_others_out(tmp_path: Path, no_locks: None) -> None:
    record(tmp_path, ELSEWHERE, age=4)
    for take_over in (False, True):
        with (
            pytest.raises(UserError, match=r"in use by process 4711 on node7, .*last sign 4 s ago"),
            FolderLock(tmp_path, take_over=take_over),
        ):
            pass


def test_without_locks_three_missed_heartbeats_name_the_holder_and_take_over(tmp_path: Path, no_locks: None) -> None:
    record(tmp_path, ELSEWHERE, age=31)
    with pytest.raises(UserError, match=r"is locked by process 4711 on node7, .*not responded for 31 s.*--take_over"):
        FolderLock(tmp_path).__enter__()
    with FolderLock(tmp_path, take_over=True):
        assert Holder.of((tmp_path / FILE).read_bytes()) == Holder.current()
    with FolderLock(tmp_path):  # what ends in order leaves the folder free
        pass


def test_without_locks_of_two_jobs_that_start_at_once_one_goes_on(
    tmp_path: Path, no_locks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: record(tmp_path, ELSEWHERE))
    with pytest.raises(UserError, match="in use by process 4711 on node7"), FolderLock(tmp_path):
        pass


def test_a_clock_that_went_back_keeps_nobody_out_for_ever(tmp_path: Path, no_locks: None) -> None:
    record(tmp_path, ELSEWHERE, age=-3600)
    with FolderLock(tmp_path, take_over=True):
        assert Holder.of((tmp_path / FILE).read_bytes()) == Holder.current()


@pytest.mark.parametrize("text", ["", '{"host": "node7", "proc', "[]"])
def test_a_record_that_was_cut_short_is_nobodys(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    os.utime(tmp_path / FILE, (time.time() - 40,) * 2)
    with FolderLock(tmp_path):
        assert Holder.of((tmp_path / FILE).read_bytes()) == Holder.current()


def test_where_locks_do_not_reach_other_machines_their_heartbeats_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.5)
    record(tmp_path, ELSEWHERE)
    with FolderLock(tmp_path):  # no heart beats there any more: after three the folder is free
        pass
    record(tmp_path, ELSEWHERE)
    beat = threading.Timer(0.3, os.utime, [tmp_path / FILE])
    beat.start()
    with pytest.raises(UserError, match="in use by process 4711 on node7"), FolderLock(tmp_path):
        pass
    beat.join()


@pytest.mark.parametrize("locks", [True, False])
def test_an_attempt_that_a_launcher_starts_again_passes_at_once(
    tmp_path: Path, locks: bool, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if not locks:
        request.getfixturevalue("no_locks")
    record(tmp_path, replace(ELSEWHERE, launches={"torchrun job": 0}))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    started = time.monotonic()
    with FolderLock(tmp_path):
        assert time.monotonic() - started < 5


def test_a_launcher_is_known_by_its_job_and_counts_its_attempts() -> None:
    first = {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "0", "SLURM_JOB_ID": "71"}
    assert launches_of(first, "a", 9) == {"torchrun none a 9": 0, "slurm 71": 0}
    assert launches_of({}, "a", 9) == {}
    first_attempt = Holder("a", 1, 0.0, launches_of(first, "a", 9))
    cases = [
        (first | {"TORCHELASTIC_RESTART_COUNT": "1"}, 9, True),
        (first, 9, False),  # a second start inside one job is not a restart
        (first | {"TORCHELASTIC_RESTART_COUNT": "1"}, 8, False),  # of another agent
        (first | {"SLURM_RESTART_COUNT": "1"}, 8, True),
        ({}, 9, False),
    ]
    for environ, parent, expected in cases:
        assert Holder("b", 2, 1.0, launches_of(environ, "a", parent)).follows(first_attempt) is expected


def test_a_job_whose_folder_was_taken_over_ends(tmp_path: Path) -> None:
    program = HOLD.replace("with Folder", "import lit_mm.run.lock\nlit_mm.run.lock.BEAT = 0.1\nwith Folder")
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline()
    record(tmp_path, ELSEWHERE)
    assert process.wait(timeout=30) == lock.TAKEN_OVER
    assert "was taken over by process 4711 on node7" in process.stderr.read()


def test_a_folder_that_cannot_be_written_is_the_users_to_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(lock.os, "open", refuse)
    with pytest.raises(UserError, match=r"cannot be written \(Read-only file system\).*--run_dir"):
        FolderLock(tmp_path).__enter__()


def test_two_runs_that_start_in_the_same_second_have_different_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [RunFolder.open(None, "tiny") for _ in range(20)]
    folders = {run.path for run in runs}
    runs[-1].point_latest()
    assert len(folders) == 20 and all((folder / "checkpoints").is_dir() for folder in folders)
    assert Path("runs/latest").resolve() in {folder.resolve() for folder in folders}
