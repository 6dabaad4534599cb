"""How a run ends when it is asked to, and what the scheduler is told."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
from collections.abc import Collection, Mapping

# Exit codes. EX_TEMPFAIL of sysexits.h, "try again later": what a scheduler may be configured to requeue on (SLURM's
# RequeueExit). torchrun with --max_restarts starts its group again on any code but 0.
REQUEUE = 75
CTRL_C = 130  # what a shell reports after Ctrl+C
STALLED = 124  # what timeout(1) reports

HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
NO_TERMINAL = {errno.EIO, errno.EPIPE}  # of a write to a terminal that was closed


class Interrupted(SystemExit):
    """Signals or the time limit ended the run; what was done so far is in a checkpoint.

    Args:
        signals: the signals that any rank received.
        kept: what the message says about the state that was kept.
        rank: of this process, over all nodes.
        together: all ranks end here, after the same step.
        out_of_time: the time limit of the launch, `trainer.max_time`, is over.
    """

    def __init__(
        self,
        signals: Collection[signal.Signals],
        kept: str,
        rank: int = 0,
        *,
        together: bool = False,
        out_of_time: bool = False,
    ) -> None:
        self.signals, self.kept, self.rank, self.together = frozenset(signals), kept, rank, together
        self.out_of_time = out_of_time
        super().__init__(CTRL_C if self.signals == {signal.SIGINT} else REQUEUE)

    def __str__(self) -> str:
        causes = [*sorted(received.name for received in self.signals), *["trainer.max_time"] * self.out_of_time]
        return f"stopped by {', '.join(causes)} {self.kept}."

    @property
    def wants_requeue(self) -> bool:
        """SIGUSR1 is the scheduler's word that time is up, SIGTERM that the job must make room.

        A SIGTERM on which the ranks do not end together may be srun's, which ends them all when one has failed: a job
        that fails is not to come back for ever.
        """
        return not self.rank and (signal.SIGUSR1 in self.signals or (self.together and signal.SIGTERM in self.signals))


def slurm_job(environ: Mapping[str, str]) -> str | None:
    """The id that `scontrol requeue` takes for the job this process belongs to, None outside SLURM.

    A task of a job array is requeued alone: "<array job>_<task>".
    """
    if "SLURM_ARRAY_JOB_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ.get("SLURM_JOB_ID")


def requeue(environ: Mapping[str, str] = os.environ) -> str:
    """Ask SLURM to run this job again. Call it last, on one rank: SLURM ends the job's processes right away.

    Only a running job is requeued: one that SLURM is ending by itself was cancelled, and is meant to stay so, or is
    already on its way back into the queue.

    Returns:
        What to tell the user; "" outside SLURM.
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
    """Write a line to standard error from a signal handler, or from a thread while others may hold its lock.

    Where the terminal was closed, nobody reads any more: this line and all later output are dropped; the run goes on.
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
