"""A program in a forked process behaves as one that Python starts."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.preloaded import run_program

SHOW = "import os, sys; print(sys.argv, os.getcwd(), os.environ['OF_THE_TEST'], os.getpid() == os.getsid(0))"


def test_it_has_its_arguments_its_folder_its_environment_and_a_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THE_TEST", "set")
    ended = run_program(["-c", SHOW, "a", "b c"], cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (0, f"['-c', 'a', 'b c'] {tmp_path} set True\n")


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('why')", 1, "why"),
        ("assert 1 == 2", 1, "AssertionError"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9, ""),
    ],
)
def test_its_end_is_that_of_a_process(text: str, code: int, message: str) -> None:
    ended = run_program(["-c", text])
    assert ended.returncode == code and message in ended.stderr


def test_a_program_that_takes_too_long_is_killed_and_the_next_one_runs() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run_program(["-c", "import time; time.sleep(60)"], timeout=0.05)
    assert run_program(["-c", "print(1)"]).stdout == "1\n"
