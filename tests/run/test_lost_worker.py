"""A worker of the loader that is killed ends a run in one line."""

from __future__ import annotations

import os
import re
import signal
from types import SimpleNamespace
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset

from lit_mm.errors import UserError
from lit_mm.run.lost_worker import lost_worker_named

MODULE: Any = SimpleNamespace(
    stage=SimpleNamespace(name="align"), total_steps=9, trainer=SimpleNamespace(global_step=3)
)


class Dying(Dataset):
    """A data set whose worker is killed when it reads a sample."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return number


def test_a_worker_that_was_killed_is_told_with_stage_step_and_cure() -> None:
    with pytest.raises(UserError) as refusal, lost_worker_named(MODULE):
        list(DataLoader(Dying(), batch_size=None, num_workers=1, multiprocessing_context="fork"))
    message = str(refusal.value)
    # torch does not always know the signal
    assert re.search("(was killed .Killed.|has ended) in stage 'align' after step 3 of 9. Systems do this", message)
    assert "when memory is short: lower `num_workers` of the data" in message
    assert message.endswith("The same command with the same --run_dir resumes (--debug shows torch's error)")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are "
            "out of shared memory.",
            r"process 7, was killed \(Bus error\) before the first stage. The shared memory, /dev/shm, is full",
        ),
        ("DataLoader worker (pid(s) 7, 9) exited unexpectedly", r"process 7, 9, has ended .* With `num_workers` 0"),
        ("DataLoader worker (pid 7) exited unexpectedly with exit code 1. Details are lost", r"process 7, has ended"),
    ],
)
def test_what_torch_says_of_an_end_becomes_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message), lost_worker_named(SimpleNamespace(stage=None)):
        raise RuntimeError(text)


def test_other_errors_are_unchanged() -> None:
    with pytest.raises(RuntimeError, match="a bug"), lost_worker_named(MODULE):
        raise RuntimeError("a bug")
