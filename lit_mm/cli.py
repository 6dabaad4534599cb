"""The command line: imports all, imported by none."""

from __future__ import annotations

import errno
import gc
import importlib
import os
import select
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

from lit_mm.documents.printable import visible
from lit_mm.errors import LostRankError, UserError, missing_package, suggestion

USAGE = """usage: python -m lit_mm COMMAND [--help]

  fit        run a recipe's stages:      python -m lit_mm fit --config experiments/xcomposer2.yaml
  evaluate   measure the accuracy:       python -m lit_mm evaluate runs/latest
  generate   ask about an image:         python -m lit_mm generate runs/latest --image page.png --question "..."
  chat       chat in the terminal:       python -m lit_mm chat runs/latest --image page.png
  serve      answer over HTTP:           python -m lit_mm serve runs/latest --port 8000
  compose    write an article:           python -m lit_mm compose runs/latest --instruction "..." --images DIR --out DIR
  import     get a published checkpoint: python -m lit_mm import llava-hf/llava-1.5-7b-hf --to runs/llava
  export     write a run for others:     python -m lit_mm export runs/tuned --to exported --format hf
  checkpoint inspect, consolidate:       python -m lit_mm checkpoint inspect runs/latest
  describe   plan memory and cost:       python -m lit_mm describe --config experiments/xcomposer2.yaml
  tiles      show the tiles of an image: python -m lit_mm tiles --config experiments/llava_next.yaml --image page.png
  data       check, show, index data:    python -m lit_mm data check --config experiments/xcomposer2.yaml
  recipes    list, copy the recipes:     python -m lit_mm recipes xcomposer2 --to mine.yaml
  annotate   describe, filter images:    python -m lit_mm annotate --config capfilt --source FOLDER --out FOLDER
  runs       list, compare, delete runs: python -m lit_mm runs list --sort accuracy
  sweep      search over a recipe:       python -m lit_mm sweep experiments/sweeps/llava.yaml

Every command has --help. --debug shows tracebacks. --version prints the version.
To resume a run, give its `fit` command again with the same --run_dir."""

COMMANDS = {  # command -> module in lit_mm.commands and function
    "fit": ("rehearsal", "fit_or_rehearse"),
    "evaluate": ("evaluate", "evaluate"),
    "generate": ("generate", "generate"),
    "compose": ("compose", "compose"),
    "describe": ("describe", "describe"),
    "tiles": ("tiles", "tiles"),
    "checkpoint": ("checkpoint", "checkpoint"),
    "data": ("data", "data"),
    "import": ("import_", "import_"),
    "export": ("export", "export"),
    "recipes": ("recipes", "recipes"),
    "annotate": ("annotate", "annotate"),
    "sweep": ("sweep", "sweep"),
    "runs": ("runs", "runs"),
    "chat": ("chat", "chat"),
    "serve": ("serve", "serve"),
}
LATE = ("data", "checkpoint", "recipes", "runs")  # they need torch at times only, and check its pair then
OTHER_CONFIGS = ("annotate",)  # its --config is no recipe and finds names by itself
ELSEWHERE = {  # names of other programs' commands -> what does the job here
    "train": "`fit` runs a recipe's stages",
    "validate": "`fit` examines the model on held-out documents while it trains (`examine_every`); `evaluate` does it "
    "for a trained model: python -m lit_mm evaluate runs/latest",
    "test": "`evaluate` gives the accuracy of a trained model: python -m lit_mm evaluate runs/latest",
    "predict": "`generate` answers a question about an image: python -m lit_mm generate runs/latest --image page.png "
    '--question "..."',
    "finetune": "`fit` runs a recipe's stages, on your own data with --config experiments/own_data.yaml",
    "pretrain": "`fit` runs a recipe's stages",
    "infer": "`generate` answers a question about an image",
    "resume": "the `fit` command of a run, given again with its --run_dir, resumes it",
    "eval": "`evaluate` gives the accuracy of a trained model: python -m lit_mm evaluate runs/latest",
}
LOOKING = ("describe", "tiles")  # they start nothing, and close the files that they write
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
# Exit codes; 130 is what a shell reports after Ctrl+C, 141 where nobody reads the output any more
FAILED, MISTAKE, INTERRUPTED, UNREAD = 1, 2, 130, 141


def run() -> None:
    """Run the program: `main` with the words of the command line.

    A command that only looks is over in seconds and leaves nothing behind that must be closed. So it collects no
    garbage, a tenth of its time, and its process ends at once: to take down thousands of modules one by one would be
    a fifth. If the reader of its output has ended, as `head` does, the program ends without a word.
    """
    looking = any(word in LOOKING for word in sys.argv[1:2])
    if looking:
        gc.disable()
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:
        if not has_lost_reader(sys.stdout.fileno()):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still in the buffer
        sys.exit(UNREAD)
    if looking:
        sys.stderr.flush()
        os._exit(0)


def has_lost_reader(descriptor: int) -> bool:
    """Return True if a file descriptor is a pipe whose reader has ended."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. Returns, or exits with 0, only when its work was done.

    Exits with 2 for a user's mistake, told in one to three lines; with 130 after Ctrl+C. A bug keeps its traceback and
    exits with 1.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        with no_collection():
            command = _command(arguments)
        command(arguments[1:])
    except KeyboardInterrupt as stop:
        print(f"\nlit_mm: interrupted. {stop}".rstrip(), file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        mistake = mistake_of(error)
        if mistake is None:
            raise
        if debug:
            traceback.print_exc()
        print(f"lit_mm: {visible(message_of(mistake))}", file=sys.stderr)
        sys.exit(FAILED if isinstance(mistake, LostRankError) else MISTAKE)


@contextmanager
def no_collection() -> Iterator[None]:
    """Import without collecting garbage: thousands of modules hold none, and to look takes a tenth of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def mistake_of(error: Exception) -> UserError | None:
    """Return the user's mistake behind an exception: the exception, or one that was being handled.

    A full disk is a mistake, and so is a package that this Python does not have.

    When a loader fails to start, Lightning's cleanup asks that loader for its length, fails in turn, and so hides what
    was wrong with the data.
    """
    for candidate in (error, error.__context__):
        if isinstance(candidate, UserError):
            return candidate
        if isinstance(candidate, OSError) and candidate.errno in NO_ROOM:
            place = f" ({candidate.filename})" if candidate.filename else ""
            return UserError(f"{candidate.strerror}{place}. Free some disk space; the same command resumes a run")
    if isinstance(error, ModuleNotFoundError) and (package := (error.name or "lit_mm").partition(".")[0]) != "lit_mm":
        return missing_package(package)
    return None


def message_of(error: UserError) -> str:
    """Return the message of an error without the traceback that a loader's worker wraps around it."""
    text = str(error)
    kind = type(error)
    if text.startswith(f"Caught {kind.__name__} in "):
        text = text.rpartition(f"{kind.__module__}.{kind.__qualname__}: ")[2]
    return text.strip()


def installed_version() -> str:
    """Return the version of the package; without an installation, that of its sources."""
    try:
        return version("lit_mm")
    except PackageNotFoundError:
        return "of a clone that is not installed"


def _command(arguments: Sequence[str]) -> Callable[[Sequence[str]], None]:
    """Import and return the function of a command. Other commands are not imported."""
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help", "help"):
        print(USAGE)
        sys.exit(0)
    if name in ("--version", "-V", "version"):
        print(f"lit_mm {installed_version()}")
        sys.exit(0)
    if name in ELSEWHERE:
        raise UserError(f"there is no command {name!r}: {ELSEWHERE[name]}")
    if name not in COMMANDS:
        guess = suggestion(name, COMMANDS, otherwise=f"There are {', '.join(COMMANDS)}.")
        raise UserError(f"there is no command {name!r}. {guess} (python -m lit_mm --help)")
    helping = not {"-h", "--help"}.isdisjoint(arguments)
    if name == "fit":
        from lit_mm.commands.class_help import help_page, help_request

        if (request := help_request(arguments)) is not None:
            print(help_page(*request))
            sys.exit(0)
    if name == "fit" and helping:
        from lit_mm.commands.options import fit_help

        print(fit_help())
        sys.exit(0)
    if not helping and name not in OTHER_CONFIGS:
        from lit_mm.commands.config_text import check_config_files

        check_config_files(arguments[1:])
    if not helping and name not in LATE:
        from lit_mm.environment import check_torch_pair

        check_torch_pair()
    module, function = COMMANDS[name]
    return vars(importlib.import_module(f"lit_mm.commands.{module}"))[function]
