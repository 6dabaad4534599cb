"""`sweep` checks a W&B sweep specification, shows the cost of its trials, and runs it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lit_mm.commands.options import Arguments
from lit_mm.errors import UserError
from lit_mm.sweeps.agent import words_of
from lit_mm.sweeps.parameters import Point, example_points, grid_points, random_point, written_point
from lit_mm.sweeps.specification import Specification, read_specification

if TYPE_CHECKING:
    from lit_mm.commands.cost import Cost
    from lit_mm.commands.recipe import RecipeCLI

# Keys of the record that may change: they change neither an earlier trial nor what a later one is compared by
MAY_CHANGE = re.compile(
    r"specification\.(run_cap|description|project|entity)"
    r"|recipe\.(.*\.)?(num_workers|worker_start|micro_batch)|recipe\.trainer\.(accelerator|devices|num_nodes)"
    r"|recipe\.trainer\.(strategy|logger|profiler|log_every_n_steps|default_root_dir|enable_\w+)(\..*)?"
    r"|recipe\.(track|step_timeout|checkpoint_every|keep_checkpoints|save_frozen)"
)
EPILOG = """\
The file is a W&B sweep specification. Its parameters are keys of the recipe, spelt as on the command line of `fit`;
nested `parameters:` are joined by dots. `command` runs `fit` with the recipe. `metric` is a figure that the run logs,
such as accuracy, accuracy/overall or loss:

  program: lit_mm
  command: [python, -m, lit_mm, fit, --config, experiments/llava.yaml, "${args}"]
  method: grid
  metric: {name: accuracy, goal: maximize}
  parameters:
    stages.finetune.train.connector.lr: {values: [3.0e-3, 6.0e-3]}
    seed_everything: {values: [0, 1]}

First every value is parsed with the recipe, and a table shows the trials with their cost. With a W&B account the sweep
is created on its server, and an agent runs trials here; `wandb agent ID` runs others elsewhere. Without an account, or
with --offline, Optuna chooses the trials: `grid` and `random` as W&B does, TPE for `bayes`. The same command resumes an
offline sweep. A second process with the same command joins it (on another host, with --storage journal). Each trial is
a run folder in FOLDER/trials."""


@dataclass(frozen=True)
class Checked:
    """A point of a sweep whose recipe was parsed.

    Attributes:
        point: address -> value.
        cost: cost of its run.
    """

    point: Point
    cost: Cost


def sweep(arguments: Sequence[str]) -> None:
    """Check a W&B sweep specification with its recipe, show the cost of its trials, and run it, online or offline."""
    choices = parser_of_sweep().parse_args(arguments)
    for name, count in (("trials", choices.trials), ("points", choices.points)):
        if count is not None and count < 1:
            raise UserError(f"--{name} is at least 1, got {count}")
    if choices.retry < 0:
        raise UserError(f"--retry is at least 0, got {choices.retry}")
    specification = read_specification(choices.file)
    is_offline = choices.offline or (not choices.create and not choices.check and not has_account())
    if choices.offline and choices.create:
        raise UserError("--create needs W&B's server, which --offline does not use. Choose one of the two")
    if is_offline:
        from lit_mm.commands.sweep_offline import run_offline
        from lit_mm.sweeps.search import check_offline, require_optuna

        check_offline(specification)
        if not choices.check:
            require_optuna()
    elif choices.storage or choices.folder or choices.retry:
        raise UserError("--storage, --folder and --retry are for offline sweeps. Add --offline")

    from lit_mm.commands.recipe import quiet

    quiet()
    first, *rest = points_of(specification, choices.points, choices.seed)
    recipe = open_point(specification, first)
    check_recipe(specification, recipe)
    plans = {
        repr(each.point): each
        for each in map(partial(checked, specification), example_points(specification.parameters))
    }
    is_new = True
    if is_offline and not choices.check:
        folder = folder_of(choices.folder, specification)
        is_new = begin_folder(folder, specification, choices.seed, recipe.resolved())
    if is_new:
        points = [plans.get(repr(point)) or checked(specification, point) for point in (first, *rest)]
        print(table_of(specification, points))
    if choices.check:
        return
    if is_offline:
        run_offline(
            specification,
            folder_of(choices.folder, specification),
            seed=choices.seed,
            storage=choices.storage,
            most=choices.trials,
            retries=choices.retry,
        )
        return
    from lit_mm.commands.sweep_online import run_online

    run_online(specification, create_only=choices.create, most=choices.trials)


def folder_of(folder: str | None, specification: Specification) -> Path:
    """Return the folder of an offline sweep.

    Args:
        folder: folder of the command line; None for the one of the sweep's name.
        specification: the sweep.
    Raises:
        UserError: the name is not that of a folder.
    """
    name = specification.name
    if folder is None and (Path(name).name != name or len(name.encode()) > 200 or not name.isprintable()):
        raise UserError(f"name: {name!r} names no folder. Choose another name, or give --folder")
    return Path(folder or Path("runs") / "sweeps" / name)


def parser_of_sweep() -> Arguments:
    """Return the parser of the command."""
    parser = Arguments(
        prog="python -m lit_mm sweep",
        usage="python -m lit_mm sweep FILE [--check | --create | --offline] [--trials N] [--retry N] [--folder DIR]",
        description=sweep.__doc__,
        epilog=EPILOG,
    )
    parser.add_argument("file", metavar="FILE", help="sweep specification, such as experiments/sweeps/llava.yaml")
    parser.add_argument("--check", action="store_true", help="check the file and print the trials; run nothing")
    parser.add_argument("--create", action="store_true", help="create the sweep on W&B's server; run nothing")
    parser.add_argument("--offline", action="store_true", help="search with Optuna, without W&B's server")
    parser.add_argument(
        "--trials", type=int, metavar="N", help="largest number of trials of this worker (default: all)"
    )
    parser.add_argument(
        "--points", type=int, default=24, metavar="N", help="largest number of trials in the table (default: 24)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of an offline search (default: 0)")
    parser.add_argument("--folder", metavar="DIR", help="folder of an offline sweep (default: runs/sweeps/NAME)")
    parser.add_argument(
        "--storage",
        choices=("sqlite", "journal"),
        help="storage of an offline sweep: sqlite for a local disk, journal for several hosts (default: sqlite)",
    )
    parser.add_argument(
        "--retry",
        type=int,
        default=0,
        metavar="N",
        help="repeat a failed trial of an offline sweep at most N times, in its run folder (default: 0)",
    )
    return parser


def has_account() -> bool:
    """Return True if wandb's settings name an account and W&B is not switched to offline."""
    from lit_mm.callbacks.tracking import tracking_mode

    return tracking_mode() == "online"


# --- the check -------------------------------------------------------------------------------------------------------
def points_of(specification: Specification, most: int, seed: int) -> list[Point]:
    """Return the points to describe: every grid point, or a sample of the search.

    Args:
        specification: the sweep.
        most: most points.
        seed: seed of the search.
    """
    parameters = specification.parameters
    trials = specification.trials or most
    if specification.method == "grid":
        return list(islice(grid_points(parameters), min(most, trials)))
    return [random_point(parameters, seed, number) for number in range(min(most, trials))]


def open_point(specification: Specification, point: Point) -> RecipeCLI:
    """Parse the recipe of a point and build its model on the meta device.

    Raises:
        UserError: the recipe refuses a key or a value; the message begins with the point.
    """
    import torch

    from lit_mm.commands.recipe import RecipeCLI

    try:
        with torch.device("meta"):
            return RecipeCLI(words_of(specification, point), "fit")
    except UserError as error:
        raise UserError(f"the trial with {written_point(point)} is refused: {error}") from error


def check_recipe(specification: Specification, recipe: RecipeCLI) -> None:
    """Check what `fit` checks before it creates a run folder, and the metric.

    Args:
        specification: the sweep.
        recipe: recipe of one point.
    Raises:
        UserError: a check fails.
    """
    from lit_mm.commands.results import check_figure

    recipe.check_stages()
    check_figure(recipe, specification.metric.name)


def checked(specification: Specification, point: Point) -> Checked:
    """Plan the recipe of a point.

    Raises:
        UserError: the recipe refuses it, or its stages do not fit the model; the message begins with the point.
    """
    from lit_mm.commands.cost import cost_of
    from lit_mm.commands.describe import plan_of

    recipe = open_point(specification, point)
    try:
        return Checked(point, cost_of(recipe, plan_of(recipe)))
    except UserError as error:
        raise UserError(f"the trial with {written_point(point)} is refused: {error}") from error


def table_of(specification: Specification, points: Sequence[Checked]) -> str:
    """Format the points with their costs, and the number of all trials.

    Args:
        specification: the sweep.
        points: checked points.
    """
    from lit_mm.commands.cost_tables import GIB, aligned, amount

    varied = [
        address for address in specification.parameters if len({repr(each.point[address]) for each in points}) > 1
    ]
    rows = [["trial", *varied, "parameters", "trainable", "GiB a rank", "steps", "rows", "tokens", "operations"]]
    for number, each in enumerate(points):
        cost = each.cost
        memory = "-" if cost.memory is None else f"{cost.memory / GIB:.2f}"
        counts = ["-" if count is None else f"{count:,}" for count in (cost.steps, cost.rows, cost.tokens)]
        values = [_short(each.point[address]) for address in varied]
        sizes = [f"{cost.parameters:,}", f"{cost.trainable:,}", memory]
        rows.append([str(number), *values, *sizes, *counts, amount(cost.operations)])
    trials = specification.trials
    total = "trials without an end (no run_cap)" if trials is None else f"{trials:,} trial" + "s" * (trials > 1)
    metric = specification.metric
    aim = f"{metric.goal[:-1]}ing {metric.name}"
    head = f"{specification.name}: {specification.method} search by {aim}, {total}"
    notes = []
    if specification.method == "bayes":
        notes.append("the values are examples: a Bayesian search chooses them by the trials before")
    if trials is None or trials > len(points):
        notes.append(f"the table has the first {len(points)}")
    steps = [each.cost.steps for each in points]
    if trials == len(points) and None not in steps:
        notes.append(f"{sum(steps):,} optimizer steps in all")
    notes.append("memory is without activations, tokens count full rows, operations are `describe`'s estimate")
    return "\n".join([head, "", aligned(rows), "", "; ".join(notes)])


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 28 else f"{text[:25]}..."


# --- the folder of an offline sweep ----------------------------------------------------------------------------------
def begin_folder(folder: Path, specification: Specification, seed: int, recipe: str) -> bool:
    """Write sweep.yaml in the folder of a sweep, or compare the one that is there.

    The number of trials may grow, and keys of the recipe that change no result may change.

    Args:
        folder: folder of the sweep.
        specification: the sweep.
        seed: seed of the search.
        recipe: resolved config of the first point.
    Returns:
        True for a new sweep.
    Raises:
        UserError: the folder holds another sweep, its sweep.yaml is missing or damaged, or it cannot be written.
    """
    from lit_mm.checkpoints.before import translate_config
    from lit_mm.run import folder as run_folder
    from lit_mm.run.files import write_whole
    from lit_mm.sweeps.search import FILES, storage_of

    content = {"specification": specification.content, "seed": seed, "recipe": translate_config(yaml.safe_load(recipe))}
    record = yaml.safe_load(yaml.safe_dump(content))  # with lists in place of tuples
    file = folder / "sweep.yaml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            if (kind := storage_of(folder)) is not None:
                raise UserError(
                    f"{str(folder)!r} has {FILES[kind]} of a sweep, but no sweep.yaml, which describes it. "
                    "Put it back, or choose another folder with --folder"
                )
            write_whole(file, yaml.safe_dump(record, sort_keys=False))
            return True
        earlier = record_of_sweep(file)
        differences = run_folder.differences(earlier, record)
        keys = [key for key in differences if not MAY_CHANGE.fullmatch(key)]
        if keys:
            raise UserError(
                f"{str(folder)!r} holds another sweep; it differs in {run_folder.listed(keys, earlier, record)}. "
                "Resume with the same file and recipe, or choose another folder with --folder"
            )
        before, now = (version["specification"].get("run_cap") or math.inf for version in (earlier, record))
        if now < before:
            raise UserError(
                f"{str(folder)!r} holds a sweep of at most {before} trials, and `run_cap` is {now} here. It can "
                "only grow, because a trial that has run keeps its rank. To run fewer from now on, give --trials"
            )
        if differences:
            write_whole(file, yaml.safe_dump(record, sort_keys=False))
    except OSError as error:
        raise UserError(f"the folder of the sweep {str(folder)!r} cannot be used ({error.strerror})") from error
    return False


def record_of_sweep(file: Path) -> Mapping[str, Any]:
    """Read sweep.yaml in the form of this version.

    Raises:
        UserError: the file is damaged.
    """
    from lit_mm.checkpoints.before import translate_config
    from lit_mm.run.folder import with_new_arguments

    try:
        record = yaml.safe_load(file.read_text(encoding="utf-8"))
        return {**record, "recipe": with_new_arguments(translate_config(record["recipe"]))}
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{str(file)!r} is damaged ({type(error).__name__}). Put a copy back, or choose another folder with "
            "--folder"
        ) from error
