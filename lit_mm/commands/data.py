"""`data` checks a data set, shows a sample with its label mask, and indexes pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lit_mm.commands.data_check import check
from lit_mm.commands.data_index import index
from lit_mm.commands.data_show import show
from lit_mm.commands.options import RECIPE_OPTIONS, Arguments
from lit_mm.errors import UserError

PROG = "python -m lit_mm data"
EPILOG = """examples:
  python -m lit_mm data check --config experiments/xcomposer2.yaml
  python -m lit_mm data check --config experiments/xcomposer2.yaml --pixels 0.1
  python -m lit_mm data check --source "{format: llava, path: chat.json, images: pictures}" --format json
  python -m lit_mm data show 17 --config experiments/xcomposer2.yaml --output sample.png
  python -m lit_mm data show 17 --config experiments/xcomposer2.yaml --data.init_args.questions 1
  python -m lit_mm data index --source "{format: captions, path: 'shards/{00000..00127}.tar'}"

formats: llava, qwen_vl, xcomposer, messages (chat clients), query_response, captions (WebDataset tar shards), obelics,
mmc4, folder.
Indexes lie in $LIT_MM_CACHE (default: ~/.cache/lit_mm)."""


def data(arguments: Sequence[str]) -> None:
    """Check a data set without decoding pixels, show a sample with its label mask, or index its pictures."""
    parser = Arguments(prog=PROG, description=data.__doc__, epilog=EPILOG)
    actions = parser.add_subparsers(dest="action", required=True, metavar="check | show | index")

    check_parser = actions.add_parser("check", description=check.__doc__, help="list errors with file and line")
    check_parser.add_argument(
        "--format", choices=("table", "json"), default="table", help="format of the output (default: table)"
    )
    check_parser.add_argument(
        "--lines", type=int, default=100, help="largest number of errors in the list; 0 lists all (default: 100)"
    )
    check_parser.add_argument(
        "--pixels",
        type=float,
        nargs="?",
        const=1.0,
        default=0.0,
        metavar="SHARE",
        help="also decode the pictures of all samples, or of a share of them (0.01: every hundredth)",
    )
    check_parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="number of worker processes (default: one per processor, 0 for few samples)",
    )

    show_parser = actions.add_parser("show", description=show.__doc__, help="print one sample as the model reads it")
    show_parser.add_argument("index", type=int, help="number of the sample, counted from 0")
    show_parser.add_argument(
        "--output", metavar="PNG", help="file for the picture of its views (default: sample-<index>.png)"
    )

    index_parser = actions.add_parser("index", description=index.__doc__, help="store picture sizes and sample lengths")
    index_parser.add_argument("--rebuild", action="store_true", help="discard stored results and compute them again")

    for action in (check_parser, show_parser, index_parser):
        action.add_argument(
            "--config",
            metavar="FILE",
            action="append",
            help="recipe; later ones override earlier ones. Keys of the recipe may follow (--data.init_args.path FILE)",
        )
        action.add_argument(
            "--stage", metavar="NAME", help="stage of the recipe (default: all; with `show`, the first)"
        )
        action.add_argument(
            "--source", metavar="YAML", help="a source instead of those of the recipe: {format: ..., path: ...}"
        )
    options, overrides = split_overrides(arguments)
    choices = parser.parse_args(options)
    if overrides and choices.config is None:
        raise UserError(f"{overrides[0]} is a key of a recipe. Add the recipe with --config")
    choices.recipe = [*(word for path in choices.config or () for word in ("--config", path)), *overrides]
    if choices.config is None and (choices.source is None or choices.action == "show"):
        needs = "--config" if choices.action == "show" else "--config or --source"
        raise UserError(f"data {choices.action} needs {needs} ({PROG} {choices.action} --help)")
    {"check": check, "show": show, "index": index}[choices.action](choices)


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split a command line into the options of `data` and the recipe's keys with their values, both in order."""
    keys = {
        "model",
        "data",
        "stages",
        "trainer",
        "seed_everything",
        "allow",
        *(option.name for option in RECIPE_OPTIONS),
    }
    options: list[str] = []
    overrides: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("--") or re.split(r"[.=]", argument[2:])[0] not in keys:
            options.append(argument)
            continue
        overrides.append(argument)
        if "=" not in argument and (value := next(rest, None)) is not None:
            overrides.append(value)
    return options, overrides
