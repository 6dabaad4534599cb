"""The errors that a user can cause and cure, and the words that many of their messages share."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from pathlib import Path


class UserError(ValueError):
    """Something in the config, the data or the machine is wrong, and the message says what, where and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class LostRankError(UserError):
    """Another rank of the job has ended or does not answer. The command line prints one line and exits with code 1."""


def suggestion(name: str, candidates: Iterable[str], otherwise: str = "") -> str:
    """Return "Did you mean 'width'?" with the candidate nearest to a name; `otherwise` if no candidate is similar."""
    close = difflib.get_close_matches(name, list(candidates), n=1)
    return f"Did you mean {close[0]!r}?" if close else otherwise


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return ". Did you mean 'width'?", which continues a message; "" if no candidate is similar."""
    guess = suggestion(name, candidates)
    return f". {guess}" if guess else ""


def first_line(error: BaseException) -> str:
    """Return the first line of the error of another package, without a full stop; its type's name if it has no text."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def missing_package(package: str) -> UserError:
    """Return the error about a package that this Python lacks: often the environment of `make setup` is not active."""
    environment = Path(".venv")
    if (environment / "bin/python").is_file() and environment.resolve() != Path(sys.prefix).resolve():
        cure = "the environment of this folder is not active: source .venv/bin/activate"
    else:
        cure = "run `make setup` and `source .venv/bin/activate`, or `pip install -r requirements.lock`"
    return UserError(f"{package} is not installed for {sys.executable}; {cure}")


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, which gets an s unless the number is 1: "1 view", "2 views"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
