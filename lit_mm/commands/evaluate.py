"""`evaluate` prints accuracy and the blind baseline of checkpoints on held-out documents, or figures on benchmarks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from lit_mm.commands.options import ACCELERATORS, Arguments
from lit_mm.errors import UserError, first_line

if TYPE_CHECKING:
    from lit_mm.documents.sources import Source

PATHS = ("path", "images")  # keys of a declaration


def evaluate(arguments: Sequence[str]) -> None:
    """Measure checkpoints on held-out documents, with their pictures and with shuffled ones, or on benchmarks."""
    choices = parser_of_evaluate().parse_args(arguments)
    for name, count in (("documents", choices.documents), ("batch_size", choices.batch_size)):
        if count is not None and count < 1:
            raise UserError(f"--{name} is at least 1, got {count}")
    choices.checkpoint = choices.checkpoint or ["runs/latest"]
    if choices.difference is not None and not (0 < choices.difference <= 100 and len(choices.checkpoint) > 1):
        raise UserError(
            "--difference is above 0 and at most 100 points, and needs at least two checkpoints to compare, got "
            f"{choices.difference:g} and {len(choices.checkpoint)} of them"
        )
    if choices.list:
        from lit_mm.commands.benchmarks import list_benchmarks

        print(list_benchmarks(choices.benchmarks.split(",") if choices.benchmarks else ()))
        return
    if choices.benchmarks is not None:
        from lit_mm.commands.benchmarks import evaluate_benchmarks

        evaluate_benchmarks(choices)
        return
    if choices.procedure or choices.blind:
        raise UserError("--procedure and --blind need --benchmarks; --list shows the benchmarks")

    from lit_mm.commands.examinations import examine_runs  # torch: seconds, which --help need not wait for

    examine_runs(choices, None if choices.data is None else declared(choices.data))


def parser_of_evaluate() -> Arguments:
    """Return the parser of the command."""
    parser = Arguments(prog="python -m lit_mm evaluate", description=evaluate.__doc__)
    parser.add_argument(
        "checkpoint",
        nargs="*",
        help="run folder or checkpoint (default: runs/latest); several are measured and compared",
    )
    parser.add_argument(
        "--benchmarks",
        metavar="NAMES",
        help="benchmarks with files below --data DIR, such as textvqa,docvqa:test or mine.yaml (--list shows all)",
    )
    parser.add_argument("--list", action="store_true", help="list the benchmarks and the places of their files")
    parser.add_argument(
        "--procedure",
        default="",
        metavar="NAME",
        help="procedure of asking and scoring (default: the published one of the model's family, or else `ours`)",
    )
    parser.add_argument("--blind", action="store_true", help="also measure benchmarks with shuffled pictures")
    parser.add_argument(
        "--difference",
        type=float,
        metavar="POINTS",
        help="compute the number of questions that detects this difference of two checkpoints, in points of 100, with "
        "a power of 80 percent (default: the measured difference)",
    )
    parser.add_argument("--stage", help="use the end of this stage (default: the newest checkpoint)")
    parser.add_argument("--averaged", action="store_true", help="use moving averages for the weights that have them")
    parser.add_argument("--config", help="build the model from this config instead of that of the checkpoint")
    parser.add_argument(
        "--data",
        metavar="SOURCE",
        help='documents, as "{format: llava, path: asked.json, images: DIR}" or as a YAML file with that content '
        "(default: the held-out documents of the recipe); with --benchmarks: folder of the benchmarks",
    )
    parser.add_argument(
        "--documents",
        type=int,
        help="number of documents or questions (default: that of the recipe, and whole benchmarks)",
    )
    parser.add_argument("--batch_size", type=int, default=64, help="number of documents in a batch (default: 64)")
    parser.add_argument(
        "--format", choices=("table", "json"), default="table", help="format of the output (default: table)"
    )
    parser.add_argument("--accelerator", choices=ACCELERATORS, help="device (default: that of the config)")
    return parser


def declared(text: str) -> Source:
    """Open the source that `--data` declares. Its relative paths start from the current folder.

    Raises:
        UserError: the text is not a declaration, or its data cannot be read.
    """
    from lit_mm.documents.sources import open_source
    from lit_mm.documents.sources.paths import expand_home, is_url

    where, file = "--data", Path(text)
    if not text.lstrip().startswith("{"):
        where = f"--data {text}"
        if not file.is_file():
            raise UserError(f"there is no file {text!r} with a source for --data")
    try:
        declaration = yaml.safe_load(text if where == "--data" else file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{where} is not YAML: {first_line(error)}") from error
    if not isinstance(declaration, dict):
        raise UserError(f'{where} is a mapping such as "{{format: llava, path: asked.json}}", got {declaration!r}')
    paths = {key: value for key, value in declaration.items() if key in PATHS and isinstance(value, str)}
    absolute = {key: path if is_url(path) else os.path.abspath(expand_home(path)) for key, path in paths.items()}
    return open_source(declaration | absolute)
