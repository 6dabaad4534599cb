"""The end of a run whose loader has lost a worker: one line instead of torch's traceback."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from lit_mm.errors import UserError
from lit_mm.module import MultimodalModule

# torch raises this error wherever the main process is, also in an examination, because a signal tells it of the end
WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? (?P<pids>[\d, ]+)\) (?:is killed by signal: (?P<signal>[^.]+)|exited)"
)
CAUSES = {
    "Killed": "Systems do this when memory is short: lower `num_workers` of the data, or give the job more memory",
    "Bus error": "The shared memory, /dev/shm, is full: enlarge it (docker run --shm-size), or set `num_workers` of "
    "the data to 0",
}
UNKNOWN = (
    "Systems do this when memory is short: lower `num_workers` of the data. With `num_workers` 0, an error of the "
    "worker itself would be printed"
)


@contextmanager
def lost_worker_named(module: MultimodalModule) -> Iterator[None]:
    """Turn torch's error of a worker that has ended inside a `with` block into one line with stage, step and cure.

    Raises:
        UserError: a worker of the loader was killed or has ended. Other errors are unchanged.
    """
    try:
        yield
    except RuntimeError as error:
        # The loader wraps the error with the signal in one without
        texts = [str(each) for each in (error.__cause__, error) if each is not None]
        matches = [match for match in map(WORKER.search, texts) if match]
        if not matches:
            raise
        raise UserError(message(module, matches[0])) from error


def message(module: MultimodalModule, match: re.Match[str]) -> str:
    """Write the line of a run that has lost a worker."""
    stage = "before the first stage" if module.stage is None else f"in stage {module.stage.name!r}"
    step = f" after step {module.trainer.global_step} of {module.total_steps}" if module.stage is not None else ""
    end = "has ended" if match["signal"] is None else f"was killed ({match['signal']})"
    return (
        f"a worker of the data loader, process {match['pids']}, {end} {stage}{step}. "
        f"{CAUSES.get(match['signal'], UNKNOWN)}. The same command with the same --run_dir resumes (--debug shows "
        "torch's error)"
    )
