"""The words that W&B's agent gives to a trial, by the agent's own functions."""

from __future__ import annotations

import sys
from pathlib import Path

from lit_mm.sweeps.parameters import Point
from lit_mm.sweeps.specification import ARGUMENTS, Specification


def arguments_of(specification: Specification, point: Point) -> list[str]:
    """Return the words in place of the macro of arguments.

    Args:
        specification: the sweep.
        point: address -> value.
    """
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    macro = next(word for word in specification.command if word in ARGUMENTS)
    forms = create_sweep_command_args({"args": {address: {"value": value} for address, value in point.items()}})
    return forms[macro.removeprefix("${").removesuffix("}")]


def words_of(specification: Specification, point: Point) -> list[str]:
    """Return the words that `fit` receives for a point."""
    return specification.fit_words(arguments_of(specification, point))


def command_of(specification: Specification, point: Point, run_dir: Path) -> list[str]:
    """Return the words that run a trial on this machine, with W&B's macros replaced.

    `${interpreter}` is the interpreter of this process; for the agent it is the first `python` of the path.

    Args:
        specification: the sweep.
        point: address -> value.
        run_dir: run folder of the trial.
    """
    from wandb.sdk.launch.sweeps.utils import create_sweep_command

    arguments = [*arguments_of(specification, point), "--run_dir", str(run_dir)]
    macros = {
        "${env}": ["/usr/bin/env"],
        "${interpreter}": [sys.executable],
        "${program}": [str(specification.content.get("program", ""))],
        **{macro: arguments for macro in ARGUMENTS},
    }
    words = create_sweep_command(list(specification.command))  # replaces ${envvar:NAME}
    return [part for word in words for part in macros.get(word, [word])]
