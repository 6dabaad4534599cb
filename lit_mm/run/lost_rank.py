"""The end of a rank whose connection to another rank is lost: one line instead of torch's traceback."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath

import torch.distributed as dist

from lit_mm.errors import LostRankError
from lit_mm.module import MultimodalModule

# What gloo writes when the process at the other end has ended or does not answer
GLOO = re.compile(r"gloo/transport.*(closed by peer|reset by peer|broken pipe|timed out|socket)", re.I | re.S)
PEER = re.compile(r"\[\d[\d.]*\]:\d+|\[[\da-f:]+\]:\d+", re.I)


@contextmanager
def lost_rank_named(module: MultimodalModule) -> Iterator[None]:
    """Turn the error of a lost connection inside a `with` block into one line with stage, step and operation.

    Raises:
        LostRankError: another rank has ended or does not answer. Other errors are unchanged.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        raise LostRankError(message(module, error)) from error


def is_lost_connection(error: BaseException) -> bool:
    """Return True if a collective operation has failed because of another rank or of the network."""
    return isinstance(error, dist.DistNetworkError | dist.DistBackendError) or bool(GLOO.search(str(error)))


def operation_of(error: BaseException) -> str:
    """Return the name of the collective operation that failed; gradients are reduced outside of Python."""
    frames = traceback.extract_tb(error.__traceback__)
    names = [frame.name for frame in frames if PurePath(frame.filename).name == "distributed_c10d.py"]
    names = [name for name in names if name not in ("wrapper", "wait")]
    return f"`{names[-1]}`" if names else "the reduction of gradients"


def message(module: MultimodalModule, error: BaseException) -> str:
    """Write the line of a rank that survives."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    stage = "before the first stage" if module.stage is None else f"in stage {module.stage.name!r}"
    step = f", step {module.trainer.global_step + 1} of {module.total_steps}" if module.stage is not None else ""
    peer = PEER.search(str(error))
    return (
        f"rank {rank} lost its connection to another rank{f' at {peer[0]}' if peer else ''} {stage}{step}, in "
        f"{operation_of(error)}. The rank that ended first says why, or was killed. The same command with the same "
        "--run_dir resumes (--debug shows torch's error)"
    )
