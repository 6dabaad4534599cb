"""The command line: imports all, imported by none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from lit_mm.errors import UserError

USAGE = """usage: python -m lit_mm COMMAND [--help]

  fit        run a recipe's stages:      python -m lit_mm fit --config experiments/xcomposer2.yaml
  evaluate   accuracy per skill:         python -m lit_mm evaluate runs/latest
  generate   ask about an image:         python -m lit_mm generate runs/latest --image page.png --question "..."

Every command explains itself with --help. --debug shows tracebacks."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. Exits with 0 only when its work was done, with 2 for a user's mistake."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        _command(arguments)(arguments[1:])
    except UserError as error:
        if debug:
            raise
        print(f"lit_mm: {error}", file=sys.stderr)
        sys.exit(2)


def _command(arguments: Sequence[str]) -> Callable[[Sequence[str]], None]:
    """The function of a command; what it needs is imported only then."""
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help", "help"):
        print(USAGE)
        sys.exit(0)
    from lit_mm.environment import check_torch_pair

    check_torch_pair()
    if name == "fit":
        from lit_mm.commands.fit import fit

        return fit
    if name == "evaluate":
        from lit_mm.commands.evaluate import evaluate

        return evaluate
    if name == "generate":
        from lit_mm.commands.generate import generate

        return generate
    raise UserError(f"there is no command {name!r}; there are fit, evaluate and generate (python -m lit_mm --help)")
