"""The end of a run on a signal or a time limit: exit codes, and requeueing by SLURM."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
from collections.abc import Collection, Mapping

# Exit codes. REQUEUE is EX_TEMPFAIL of sysexits.h, "try again later"; a scheduler may be configured to requeue on it
# (SLURM's RequeueExit). torchrun with --max_restarts starts its group again on any code but 0.
REQUEUE = 75
CTRL_C = 130  # exit code of shells after Ctrl+C
STALLED = 124  # exit code of timeout(1)

HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
NO_TERMINAL = {errno.EIO, errno.EPIPE}  # errors of a write to a closed terminal


class Interrupted(SystemExit):
    """Ends a run on signals or at the time limit, after its state has been saved in a checkpoint.

    Args:
        signals: signals that any rank has received.
        saved_state: end of the message, which tells the state that was saved.
        rank: rank of this process, over all nodes.
        together: True if all ranks end after the same step.
        out_of_time: True if the time limit of the launch, `trainer.max_time`, is over.
    """

    def __init__(
        self,
        signals: Collection[signal.Signals],
        saved_state: str,
        rank: int = 0,
        *,
        together: bool = False,
        out_of_time: bool = False,
    ) -> None:
        self.signals, self.saved_state, self.rank, self.together = frozenset(signals), saved_state, rank, together
        self.out_of_time = out_of_time
        super().__init__(CTRL_C if self.signals == {signal.SIGINT} else REQUEUE)

    def __str__(self) -> str:
        causes = [*sorted(received.name for received in self.signals), *["trainer.max_time"] * self.out_of_time]
        return f"stopped by {', '.join(causes)} {self.saved_state}."

    @property
    def wants_requeue(self) -> bool:
        """True on the first rank if the scheduler wants the job to run again later.

        A scheduler sends SIGUSR1 when time is up and SIGTERM when the job must make room. If the ranks do not end
        together, a SIGTERM may come from srun, which ends all ranks when one has failed. Such a job is not requeued,
        because a job that fails would come back for ever.
        """
        return not self.rank and (signal.SIGUSR1 in self.signals or (self.together and signal.SIGTERM in self.signals))


def slurm_job(environ: Mapping[str, str]) -> str | None:
    """Return the id of this process's job for `scontrol requeue`; None outside SLURM.

    The id of a task in a job array is "<array job>_<task>", so that the task is requeued alone.
    """
    if "SLURM_ARRAY_JOB_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ.get("SLURM_JOB_ID")


def requeue(environ: Mapping[str, str] = os.environ) -> str:
    """Ask SLURM to run this job again. Call it last, on one rank, because SLURM then ends the job's processes.

    Only a running job is requeued. A job that SLURM is already ending was cancelled, or is on its way back into the
    queue.

    Returns:
        Message for the user; "" outside SLURM.
    """
    job = slurm_job(environ)
    if job is None:
        return ""
    by_hand = f"requeue it by hand: scontrol requeue {job}"
    if not re.fullmatch(r"\d+(_\d+)?", job):
        return f"the job id {job!r} is not one of SLURM's; {by_hand}"
    try:
        job_info = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, timeout=60)
        state = re.search(r"JobState=(\w+)", job_info.stdout)
        if state and state[1] != "RUNNING":
            return f"SLURM job {job} is {state[1]} and is left so; to go on, {by_hand}"
        result = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"SLURM job {job} could not be requeued ({error}); {by_hand}"
    if result.returncode:
        message = (result.stderr or result.stdout).strip() or f"exit code {result.returncode}"
        return f"SLURM job {job} could not be requeued ({message}). Was it submitted with --requeue?"
    return f"SLURM job {job} is requeued."


def say(text: str) -> None:
    """Write a line to standard error. It takes no lock, so signal handlers and threads may call it.

    If the terminal was closed, this line and all later output are dropped and the run goes on.
    """
    try:
        os.write(2, f"{text}\n".encode())
    except OSError as error:
        if error.errno not in NO_TERMINAL:
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in (1, 2):
            os.dup2(nowhere, descriptor)
        os.close(nowhere)
