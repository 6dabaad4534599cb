"""The watchdog ends a job that hangs, on every rank, and names the place; it leaves a job that makes progress alone."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from lit_mm.callbacks.watchdog import Watchdog, postpone_torch
from lit_mm.errors import UserError
from lit_mm.run.interruption import STALLED
from tests.signals import Job, run_all

SLEEPS = Job("sleeps", 2, "sleep", 1, "finetune 2", workers=1, seconds=4)
OTHERS = {
    "holds the lock": Job("holds the lock", 2, "lock", 1, "finetune 2", seconds=4),
    "alone": Job("alone", 1, "sleep", 0, "pretrain 4", workers=1, seconds=2),
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[int]]]:
    """Folder of the runs, and the exit codes of all ranks. `run_all` fails if a process is left running."""
    folder = tmp_path_factory.mktemp("stalls")
    return folder, {"sleeps": run_all([SLEEPS], folder)[0]}


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[int]]]:
    folder = tmp_path_factory.mktemp("stalls")
    return folder, dict(zip(OTHERS, run_all(list(OTHERS.values()), folder), strict=True))


def message(folder: Path, name: str, rank: int) -> str:
    return (folder / f"{name}.stderr-{rank}").read_text()


@pytest.mark.distributed
def test_a_rank_that_sleeps_ends_the_job_everywhere(ended):
    assert ended[1]["sleeps"] == [STALLED, STALLED]


@pytest.mark.distributed
def test_every_rank_says_who_it_is_what_it_did_and_with_which_samples(ended):
    where = r"rank {0} of 2 \(.+, process \d+\): stage 'finetune', step 2, {1} for \d s; samples: tiny/\d+"
    here = f"the job hangs: .*Here, {where}"
    assert re.search(here.format(1, "in the backward pass"), message(ended[0], "sleeps", 1))
    waits = message(ended[0], "sleeps", 0)
    assert re.search(here.format(0, "in .+"), waits)
    assert re.search(r"s ago, rank 1 of 2 .* step 2, in the backward pass .* samples: tiny/\d+", waits)


@pytest.mark.distributed
def test_the_line_that_hangs_is_shown(ended):
    assert "in _happens" in message(ended[0], "sleeps", 1)


@pytest.mark.distributed
def test_a_rank_that_holds_the_interpreters_lock_is_ended_too(others):
    waiting, holding = others[1]["holds the lock"]
    assert waiting == STALLED and holding == 1
    assert "in _happens" in message(others[0], "holds the lock", 1)
    assert re.search(r"s ago, rank 1 of 2", message(others[0], "holds the lock", 0))


@pytest.mark.distributed
def test_one_process_is_watched_as_well(others):
    assert others[1]["alone"] == [STALLED]
    assert "rank 0 of 1" in message(others[0], "alone", 0)


def test_a_timeout_is_positive():
    with pytest.raises(UserError, match="`step_timeout` is a number of seconds above 0, got 0"):
        Watchdog(0)


def test_torchs_own_limit_lies_behind_the_watchdogs(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        postpone_torch(7200)
        backend = dist.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
        assert backend.options._timeout > timedelta(seconds=7200)
    finally:
        dist.destroy_process_group()
