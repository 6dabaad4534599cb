"""The lock of a run folder, which lets one job at a time write there."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

import psutil

from lit_mm.errors import UserError
from lit_mm.run.interruption import say

FILE = "run.lock"
BEAT = 10.0  # seconds between heartbeats
MISSED = 3  # heartbeats after which a job counts as gone
SETTLING = 1.0  # seconds to wait without locks; the later of two jobs that start together wins
TAKEN_OVER = 2  # exit code of a job whose folder another job has taken over
CONFLICTS = {errno.EACCES, errno.EAGAIN}
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


class FolderInUse(UserError):
    """Reports a run folder that another job holds."""


@dataclass(frozen=True)
class Holder:
    """The process that holds the lock of a run folder: the first rank of a job.

    Attributes:
        host: name of the machine.
        process: process id on that machine.
        started: start of the process, seconds since the epoch.
        launches: name of launcher and job -> number of the attempt, from 0. Empty for a command typed in a shell.
    """

    host: str
    process: int
    started: float
    launches: dict[str, int] = field(default_factory=dict, compare=False)

    @classmethod
    def current(cls, environ: Mapping[str, str] = os.environ) -> Holder:
        """Describe this process as a holder."""
        host, process = socket.gethostname(), psutil.Process()
        return cls(host, process.pid, process.create_time(), launches_of(environ, host, os.getppid()))

    def is_alive(self, age: float) -> bool:
        """Return True if the process lives.

        A process of another machine lives if its last heartbeat is fresh. A process of this machine is looked up by
        number and start. The system reports another start once its clock was set, so a fresh heartbeat counts as well.
        A zombie is dead: nobody has asked for its exit code yet.

        Args:
            age: seconds since the last heartbeat.
        """
        if self.host != socket.gethostname():
            return age < MISSED * BEAT
        try:
            process = psutil.Process(self.process)
            is_process = abs(age) < MISSED * BEAT or process.create_time() == self.started
            return is_process and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    @classmethod
    def of(cls, text: bytes) -> Holder | None:
        """Parse the text of a lock file; return None if the file is empty or was cut short."""
        try:
            record = json.loads(text)
            return cls(record["host"], record["process"], record["started"], record["launches"])
        except (ValueError, KeyError, TypeError):
            return None

    def follows(self, earlier: Holder) -> bool:
        """Return True if a launcher started this process as a later attempt of the earlier process's job."""
        return any(attempt > earlier.launches.get(name, attempt) for name, attempt in self.launches.items())

    def __str__(self) -> str:
        return (
            f"process {self.process} on {self.host}, started {datetime.fromtimestamp(self.started):%Y-%m-%d %H:%M:%S}"
        )


def launches_of(environ: Mapping[str, str], host: str, parent: int) -> dict[str, int]:
    """Return name of launcher and job -> number of the attempt, for launchers that start a failed job again.

    Args:
        environ: environment variables.
        host, parent: machine and process id of torchrun's agent; they identify a job that has no id.
    """
    launches: dict[str, int] = {}
    if (run := environ.get("TORCHELASTIC_RUN_ID")) is not None:
        name = f"{run} {host} {parent}" if run in ("", "none") else run
        launches[f"torchrun {name}"] = int(environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if (job := environ.get("SLURM_JOB_ID")) is not None:
        launches[f"slurm {job}"] = int(environ.get("SLURM_RESTART_COUNT", "0"))
    return launches


def living_holder(folder: Path) -> Holder | None:
    """Return the job that uses a run folder, without touching its lock; None if no job does.

    A process of this machine is looked up. A process of another machine lives if it has renewed the file of the lock
    within `MISSED` heartbeats, by the clock of this machine. See `Holder.is_alive`.

    Args:
        folder: run folder.
    """
    try:
        holder, age = Holder.of((folder / FILE).read_bytes()), time.time() - (folder / FILE).stat().st_mtime
    except OSError:
        return None
    return holder if holder is not None and holder.is_alive(age) else None


class FolderLock:
    """Keeps other jobs out of a run folder inside a `with` block.

    The lock is a POSIX record lock on `run.lock`, a file that names the holder. It ends with the process, however the
    process ends, and forked workers do not inherit it. The holder renews the file's modification time every `BEAT`
    seconds. On a file system without locks, or with locks that do not reach other machines, these heartbeats show
    whether the holder lives. Only times set by the file system are compared, so the clocks of the machines do not
    matter. A later attempt of the same job, by torchrun or SLURM, gets the lock without waiting.

    Args:
        folder: run folder.
        take_over: True takes the folder from a holder that has missed `MISSED` heartbeats.
    Raises:
        UserError: on entering the block, if another job holds the folder or the folder cannot be written.
    """

    def __init__(self, folder: Path, *, take_over: bool = False) -> None:
        self.path, self.take_over = folder / FILE, take_over
        self.holder = Holder.current()
        self._over = threading.Event()

    def __enter__(self) -> FolderLock:
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self._claim()
            except BaseException:
                os.close(self._descriptor)
                raise
        except OSError as error:
            raise UserError(
                f"the run folder {str(self.path.parent)!r} cannot be written ({error.strerror}). Free some disk "
                "space, correct the permissions, or choose another folder with --run_dir"
            ) from error
        self._thread = threading.Thread(target=self._beat, name="folder lock", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self._current() == self.holder:
            os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)  # this releases the lock

    # --- claiming --------------------------------------------------------------------------------------------------
    def _claim(self) -> None:
        locked = self._lock()
        earlier = self._current()
        if locked is False:
            raise FolderInUse(self._in_use(earlier))
        size = os.fstat(self._descriptor).st_size
        local = earlier is not None and locked and earlier.host == self.holder.host
        if size and not local and not (earlier is not None and self.holder.follows(earlier)):
            if locked and self._age() < MISSED * BEAT:
                owner = earlier or "an unknown process"
                say(f"lit_mm: waiting up to {MISSED * BEAT:.0f} s for a sign of {owner}, which had the run folder")
            while (age := self._age()) < MISSED * BEAT:
                if not locked:
                    raise FolderInUse(f"{self._in_use(earlier)} (last sign {age:.0f} s ago)")
                time.sleep(BEAT / 10)  # the lock may not reach that machine, so look for its heartbeats
                if self._age() < age:
                    raise FolderInUse(self._in_use(self._current() or earlier))
            if not locked and not self.take_over:
                raise UserError(
                    f"the run folder {str(self.path.parent)!r} is locked by {earlier or 'an unknown process'}, which "
                    f"has not responded for {age:.0f} s. If that process has ended, repeat the command with "
                    "--take_over"
                )
        text = json.dumps(asdict(self.holder)).encode()
        os.pwrite(self._descriptor, text, 0)
        os.ftruncate(self._descriptor, len(text))
        os.fsync(self._descriptor)
        if not locked:
            time.sleep(SETTLING)
            if (other := self._current()) != self.holder:
                raise FolderInUse(self._in_use(other))

    def _lock(self) -> bool | None:
        """Return True with the lock, False if another process holds it, None on a file system without locks.

        It waits a moment for an earlier attempt of the same job to end.
        """
        deadline = time.monotonic() + MISSED * BEAT
        while True:
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except OSError as error:
                if error.errno in NO_LOCKS:
                    return None
                if error.errno not in CONFLICTS:
                    raise
            earlier = self._current()
            if earlier is None or not self.holder.follows(earlier) or time.monotonic() > deadline:
                return False
            time.sleep(BEAT / 10)

    def _current(self) -> Holder | None:
        """Return the holder that the lock file names; None if it names none."""
        return Holder.of(os.pread(self._descriptor, 1 << 16, 0))

    def _age(self) -> float:
        """Return the seconds since the last heartbeat by the file system's clock; infinite if that clock went back."""
        probe = self.path.with_name(f".lock-{uuid.uuid4().hex}")
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
        age = now - self.path.stat().st_mtime
        return age if age > -MISSED * BEAT else float("inf")

    def _in_use(self, holder: Holder | None) -> str:
        return (
            f"the run folder {str(self.path.parent)!r} is in use by {holder or 'another process'}. End that run first, "
            "or choose another folder with --run_dir"
        )

    # --- beating ---------------------------------------------------------------------------------------------------
    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            try:
                os.utime(self._descriptor)
                current = self._current()
            except OSError:  # the file server is away for a moment, and one heartbeat is missed
                continue
            if current is not None and current != self.holder:
                say(f"lit_mm: {str(self.path.parent)!r} was taken over by {current}; this run ends without saving")
                os._exit(TAKEN_OVER)
