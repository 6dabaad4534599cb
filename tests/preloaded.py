"""Python programs run in processes forked from one that has imported torch, Lightning and lit_mm.

To start Python with these imports takes seconds. The first program of a test session starts a server, `python -m
tests.preloaded`, which imports them once, before torch starts a thread. It forks a process for every program, and ends
with the session, when its standard input is closed.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


class Program:
    """A program that runs in a session of its own.

    Attributes:
        pid: number of its process, and of its process group.
    """

    def __init__(
        self, words: Sequence[str], *, cwd: Path, stdout: Path, stderr: Path, env: Mapping[str, str] | None = None
    ) -> None:
        """Start a program.

        Args:
            words: words after `python`: "-m", a module and its arguments, or "-c", a text and its arguments.
            cwd: folder in which it runs.
            stdout, stderr: files that it writes.
            env: its environment; by default that of the test, with one thread.
        """
        environment = dict(os.environ | {"OMP_NUM_THREADS": "1"} if env is None else env)
        job = {"words": list(words), "cwd": str(cwd), "stdout": str(stdout), "stderr": str(stderr), "env": environment}
        self._words = words
        self._server = server()
        self._server.stdin.write(json.dumps(job).encode() + b"\n")
        self._server.stdin.flush()
        self.pid = int(self._server.stdout.readline())

    def wait(self, timeout: float) -> int:
        """Return the exit code, -9 after a kill. After `timeout` seconds the program is killed, and it raises."""
        late = not select.select([self._server.stdout], [], [], timeout)[0]
        if late:  # the process leads its group only after it has begun to run
            for kill in (os.killpg, os.kill):
                with suppress(ProcessLookupError):
                    kill(self.pid, signal.SIGKILL)
        code = int(self._server.stdout.readline())
        if late:
            raise subprocess.TimeoutExpired(self._words, timeout)
        return code


def run_program(words: Sequence[str], *, cwd: Path = ROOT, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, as `subprocess.run` does with text that is captured; see `Program`."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "stdout"), Path(folder, "stderr")
        code = Program(words, cwd=cwd, stdout=out, stderr=err).wait(timeout)
        return subprocess.CompletedProcess(words, code, out.read_text(), err.read_text())


@cache
def server() -> subprocess.Popen[bytes]:
    """Start the server of this test process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.preloaded"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, bufsize=0)
    atexit.register(process.communicate)  # which closes its standard input
    return process


def serve() -> None:
    """Fork a process for each line of standard input, and write its number and later its exit code to standard output.

    In the forked process it runs the program, and returns or raises as the program does.
    """
    import tests.kills  # noqa: F401 - all that programs import

    gc.freeze()  # the forked processes share what exists now
    jobs, replies = os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    while line := jobs.readline():
        child = os.fork()
        if not child:
            jobs.close()
            replies.close()
            run(**json.loads(line))
            return
        replies.write(b"%d\n" % child)
        replies.write(b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def run(words: list[str], cwd: str, stdout: str, stderr: str, env: dict[str, str]) -> None:
    """Run a program in this process, which becomes the first of a session."""
    os.setsid()
    os.chdir(cwd)
    for number, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.clear()
    os.environ.update(env)
    option, program, *arguments = words
    sys.argv = [option, *arguments]
    if option == "-m":
        if not hasattr(sys.modules.get(program), "__path__"):
            sys.modules.pop(program, None)  # as if the module had not been imported
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        space: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(program, "<string>", "exec"), space)


if __name__ == "__main__":
    serve()
