"""Commands of lit_mm as a user types them, run in the process of the test."""

from __future__ import annotations

import pytest

from lit_mm.cli import main


def run_command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run a command and return its exit code, standard output and standard error.

    Args:
        capsys: fixture of the test; earlier output is dropped.
        arguments: words of the command line, which are converted to text.
    """
    capsys.readouterr()
    code = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = end.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err
