"""The options of `fit`, and the parser of the other commands. No torch is imported, so that --help comes at once."""

from __future__ import annotations

import argparse
import difflib
import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from lit_mm.errors import UserError

ACCELERATORS = ("cpu", "gpu", "cuda", "mps", "auto")  # choices of --accelerator


class Arguments(argparse.ArgumentParser):
    """An argument parser that raises `UserError`s. It takes no abbreviations, because a new option would break them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    @property
    def options(self) -> list[str]:
        """All option strings."""
        return [option for action in self._actions for option in action.option_strings]

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split()
        if message != unknown[0] and message.startswith("unrecognized arguments: "):
            option = unknown[0].partition("=")[0]
            if not option.startswith("-"):
                raise UserError(f"{extra_word(unknown[0])} ({self.prog} --help lists the options)")
            close = nearest_option(option, self.options)
            cure = f". Did you mean {close}?" if close else ""
            message = f"there is no option {unknown[0]}{cure}"
        raise UserError(f"{message} ({self.prog} --help lists the options)")


def extra_word(word: str) -> str:
    """Return the message about a word that no option takes."""
    return f"{word!r} belongs to no option: a text of several words needs quotes, and each file an option of its own"


SAME_WORD, BEGUN_WORD, SAME_LETTERS = 0.75, 0.9, 0.8  # ratios of equal letters, 0 to 1
HALF = 0.5  # share of the typed words


def add_checkpoint(parser: Arguments) -> None:
    """Add the arguments of a command that answers with a checkpoint: place, stage, config and device."""
    parser.add_argument(
        "checkpoint", nargs="?", default="runs/latest", help="run folder or checkpoint (default: runs/latest)"
    )
    parser.add_argument("--stage", help="use the end of this stage (default: the newest checkpoint)")
    parser.add_argument("--config", help="build the model from this config instead of that of the checkpoint")
    parser.add_argument("--accelerator", choices=ACCELERATORS, help="device (default: that of the config)")


def utf8_text(text: str) -> str:
    """Return the text of an option that a tokenizer reads.

    Raises:
        ArgumentTypeError: the terminal gave bytes that are not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(f"expected text in UTF-8, got {text!r}") from error
    return text


def nearest_option(typed: str, options: Iterable[str]) -> str | None:
    """Return the option nearest to a misspelt one; None if none is near.

    An option is near if it has half of the typed words, misspelt or begun ones counting a little less, or nearly all
    of the letters (`--rundir` is `--run_dir`). The nearest has the most of both together: `--checkpoint` is
    `--checkpoint_every`, which has that word, and not `--keep_checkpoints`.
    """

    def alike(word: str, other: str) -> float:
        return difflib.SequenceMatcher(None, word, other).ratio()

    def has(option: list[str], word: str) -> float:
        same = max((alike(word, other) for other in option), default=0.0)
        begun = BEGUN_WORD if len(word) > 2 and any(other.startswith(word) for other in option) else 0.0
        return max(same if same >= SAME_WORD else 0.0, begun)

    def words(option: str) -> list[str]:
        return [word for word in re.split(r"[-._]", option) if word]

    near: dict[str, float] = {}
    for option in options:
        letters = alike(typed.lstrip("-"), option.lstrip("-"))
        shared = sum(has(words(option), word) for word in words(typed)) / max(1, len(words(typed)))
        if shared >= HALF or letters >= SAME_LETTERS:
            near[option] = shared + letters
    return max(near, key=near.__getitem__, default=None)


ELSEWHERE = {  # option of another program -> option or key of the same effect
    "--ckpt_path": "a run resumes when its command is given again with its --run_dir; --init_from starts a new run "
    "from the weights of a checkpoint",
    "--resume": "a run resumes when its command is given again with its --run_dir",
    "--resume_from_checkpoint": "a run resumes when its command is given again with its --run_dir",
    "--version": "the version is printed by python -m lit_mm --version",
    "--lr": "a learning rate belongs to a part of a stage: --stages.NAME.train.PART.lr",
    "--max_steps": "the length of a stage is --stages.NAME.max_steps, or --stages.*.max_steps for all stages",
    "--epochs": "the length of a stage is --stages.NAME.epochs, or --stages.*.epochs for all stages",
    "--batch_size": "samples of an optimizer step are --data.init_args.global_batch, those of a forward "
    "--data.init_args.micro_batch",
    "--seed": "the seed is --seed_everything",
    "--output_dir": "the run folder is --run_dir",
    "--path": "the file of your data is --data.path",
    "--format": "the format of your data is --data.format",
    "--images": "the folder of your images is --data.images",
    "--data_path": "the file of your data is --data.path",
    "--gpus": "the number of GPUs is --trainer.devices",
    "--trainer.gpus": "the number of GPUs is --trainer.devices",
}


def unrecognized(words: list[str], options: list[str]) -> str:
    """Return the message about an option that no parser knows."""
    word = words[0]
    if (cure := ELSEWHERE.get(word.partition("=")[0].replace("-", "_").replace("__", "--", 1))) is not None:
        return f"there is no option {word.partition('=')[0]}: {cure}"
    if not word.startswith("-"):
        cure = f"a config is given by --config {word}" if word.endswith((".yaml", ".yml")) else "options start with --"
        return f"{word!r} is not expected on the command line; {cure}"
    option = word.partition("=")[0]
    head, dot, rest = option.partition(".")
    close = nearest_option(option, options)
    if close is None and dot:  # keys inside a model or data are not options
        near_head = nearest_option(head, sorted({name.partition(".")[0] for name in options}))
        close = f"{near_head}.{rest}" if near_head else None
    return f"there is no option {option}" + (f". Did you mean {close}?" if close else " (see --help)")


@dataclass(frozen=True)
class RecipeOption:
    """A top-level key of a recipe besides model, stages, data and trainer; on the command line `--name value`."""

    name: str
    type: Any
    default: Any
    help: str


RECIPE_OPTIONS = (
    RecipeOption("only", list[str], [], "list of the stages to run; `--stages a,b` is the short form (default: all)"),
    RecipeOption("run_dir", str | None, None, "run folder; a run in it is resumed (default: runs/<experiment>/<time>)"),
    RecipeOption(
        "take_over", bool, False, "use a run folder although it is locked by another job, which no longer responds"
    ),
    RecipeOption("other_data", bool, False, "resume although the data have changed; the ledger records what changed"),
    RecipeOption("init_from", str | None, None, "start a new run from the weights of this run folder or checkpoint"),
    RecipeOption("checkpoint_every", int, 100, "optimizer steps between checkpoints"),
    RecipeOption(
        "keep_checkpoints", int, 2, "number of newest checkpoints to keep, in addition to the most accurate one"
    ),
    RecipeOption("save_frozen", bool, False, "also save frozen parts that can be loaded from their origin"),
    RecipeOption(
        "examine_every",
        int,
        0,
        "optimizer steps between examinations on held-out documents (0: only at the ends of stages)",
    ),
    RecipeOption("examine_documents", int, 90, "number of held-out documents in an examination"),
    RecipeOption(
        "step_timeout",
        float,
        1800.0,
        "seconds without progress after which the job ends with an error that names rank, step and samples",
    ),
    RecipeOption("track", bool, True, "log to W&B; offline if no account is configured"),
    RecipeOption(
        "learning_every",
        int,
        0,
        "optimizer steps between rows of learning.csv, which has gradient norms by part (0: none)",
    ),
)


def fit_help() -> str:
    """Return the text of `fit --help`."""
    lines = []
    for option in RECIPE_OPTIONS:
        default = "" if option.default in (None, []) else f" (default: {str(option.default).lower()})"
        described = textwrap.wrap(option.help + default, 88)
        lines += [f"  --{option.name:<18} {described[0]}", *(" " * 23 + line for line in described[1:])]
    return FIT_HELP.format(options="\n".join(lines))


FIT_HELP = """usage: python -m lit_mm fit --config FILE [--KEY VALUE ...]

Train all stages of a recipe, then measure the accuracy on held-out documents beside the blind baseline.
To resume an interrupted run, give the same command again with its --run_dir.

  --config FILE        recipe: a YAML file, or the name of a recipe of the package, such as xcomposer2 (`recipes` lists
                       them). With several, later ones override earlier ones
  --stages a,b         run only these stages
{options}
  --allow PACKAGE      allow classes of another package in the recipe; the environment variable LIT_MM_ALLOW does the
                       same for every command
  --seed_everything    seed of the order of samples, initial weights and dropout (default: 0)

Any key of the recipe can be overridden, spelt as in the YAML. Keys of a stage contain its name, or * for all stages:
  --data.init_args.global_batch 32   --model.init_args.rank 8   --trainer.max_time 00:01:00:00
  --stages.pretrain.train.connector.lr 0.01   '--stages.*.max_steps' 2

More help:
  --model.help, --data.help              list the classes
  --model.help CLASS, --data.help CLASS  list the arguments of a class
  --stages.help, --trainer.help          list the keys of a stage, of the Trainer
  --print_config                         print the resolved recipe and run nothing"""
