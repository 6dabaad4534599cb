"""`annotate` runs a data engine over images and writes a new data set with an account of every text."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lit_mm.commands.config_text import COMMAND_LINE, Entry, flow, overrides, parsed, read_config, without_allow
from lit_mm.commands.options import Arguments
from lit_mm.errors import UserError

if TYPE_CHECKING:
    from lit_mm.annotation.experts import TrainedModel
    from lit_mm.annotation.pipeline import Pipeline

PIPELINES = Path(__file__).parents[1] / "annotation" / "pipelines"
KEYS = ("engine", "sources", "settings")
PAUSE = 60.0  # seconds between two lines of progress in a log
EPILOG = """A pipeline has an engine with its experts, the sources, and settings. `monkey` and `capfilt` come with the
package. Any key of the pipeline can be overridden: --engine.init_args.captioner.init_args.checkpoint runs/blip

  python -m lit_mm annotate --config capfilt --out filtered \\
      --source "{name: web, format: captions, path: 'web-{00000..00127}.tar'}"
  python -m lit_mm annotate --config monkey.yaml --source photographs --out described
  torchrun --nproc_per_node 8 -m lit_mm annotate --config monkey.yaml --out described

The same command resumes a run that was interrupted, on any number of processes. --out gets tar shards that `fit` reads,
accounts/ with every text and its verdict, ledger.json, page.html with twenty samples, and engine.json."""


def annotate(arguments: Sequence[str]) -> None:
    """Describe images with a data engine, filter the descriptions, and write a data set for `fit`."""
    parser = Arguments(prog="python -m lit_mm annotate", description=annotate.__doc__, epilog=EPILOG)
    parser.add_argument("--config", required=True, metavar="FILE", help="pipeline: a YAML file, or monkey or capfilt")
    parser.add_argument(
        "--out", required=True, metavar="FOLDER", help="folder of the new data set; an interrupted run in it is resumed"
    )
    parser.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="FOLDER | YAML",
        help="folder of images, or a source such as {name: web, format: llava, path: chat.json}; may be repeated "
        "(default: the sources of the pipeline)",
    )
    parser.add_argument("--accelerator", help="device of the checkpoints (default: those of their configs)")
    parser.add_argument("--allow", metavar="PACKAGE", help="allow classes of this package in the pipeline")
    words, keys = split_keys(without_allow(arguments))
    choices = parser.parse_args(words)
    config = pipeline_config(choices.config, choices.source, keys)

    from lit_mm.annotation.pipeline import Pipeline  # torch: seconds, which --help and a misspelt option need not wait
    from lit_mm.annotation.run import Run, agree, plan_of

    pipeline, resolved = build(config, Pipeline)
    rank, ranks = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    inputs = pipeline.inputs()
    engine = pipeline.engine
    engine.load(Checkpoints(choices.accelerator))
    folder = Path(choices.out)
    agree(folder, plan_of(engine, resolved["engine"], inputs, pipeline.settings))
    run = Run(engine, inputs, folder, pipeline.settings, rank, ranks)
    work(run)
    if run.is_complete():
        report(run)
    else:
        print(f"lit_mm: process {rank} of {ranks} has finished its shards; others are still at work")


def split_keys(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split a command line into options and keys of the pipeline with their values."""
    options: list[str] = []
    keys: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        is_key = argument.startswith("--") and re.split(r"[.=]", argument[2:])[0] in KEYS
        (keys if is_key else options).append(argument)
        if is_key and "=" not in argument and (value := next(rest, None)) is not None:
            keys.append(value)
    return options, keys


def pipeline_config(reference: str, sources: Sequence[str], keys: Sequence[str]) -> Entry:
    """Read a pipeline and apply the sources and keys of the command line.

    Raises:
        UserError: the pipeline cannot be read, or names no engine.
    """
    from lit_mm.commands.signatures import merged

    file = PIPELINES / f"{reference}.yaml"
    config = read_config(str(file) if not Path(reference).exists() and file.is_file() else reference)
    for override in overrides(keys):
        config = merged(config, override)
    if sources:
        entries = [source_entry(text, number) for number, text in enumerate(sources)]
        config = Entry({**config.keys, "sources": Entry(entries, COMMAND_LINE)}, config.place)
    return config


def source_entry(text: str, number: int) -> Entry:
    """Parse `--source`: a mapping in YAML, or a folder of images."""
    if text.lstrip().startswith("{"):
        entry = parsed(text.strip(), ("source",))
        if not isinstance(entry.value, dict):
            raise UserError(f'--source is a folder, or a mapping such as "{{name: a, path: b}}", got {text!r}')
        return entry
    name = Path(text).name or f"source{number}"
    keys = {"name": Entry(name, COMMAND_LINE, is_text=True), "path": Entry(text, COMMAND_LINE, is_text=True)}
    return Entry(keys, COMMAND_LINE)


def build(config: Entry, kind: type[Pipeline]) -> tuple[Pipeline, dict[str, Any]]:
    """Check a pipeline against the signatures of its classes and build it. Return it with its resolved config.

    Raises:
        UserError: a key or class does not exist, or a value is not of its type.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    from lit_mm.commands.mistakes import cause_of, explain
    from lit_mm.commands.recipe import check_packages
    from lit_mm.commands.signatures import check_keys, signature_of

    check_packages(config, ())
    check_keys(config, signature_of(kind), "a pipeline", ())
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind)
    try:
        namespace = parser.parse_object(yaml.safe_load(flow(config)))
        resolved = yaml.safe_load(parser.dump(namespace))
        pipeline = kind(**parser.instantiate(namespace).as_dict())
    except UserError:
        raise
    except (ArgumentError, ValueError) as error:
        cause = cause_of(error)
        if cause is None and not isinstance(error, ArgumentError):
            raise
        raise UserError(str(cause) if cause is not None else explain(str(error), config, [])) from error
    return pipeline, resolved


class Checkpoints:
    """Opens checkpoints for experts; experts of the same checkpoint share the model.

    Args:
        accelerator: device of the models; None for that of their configs.
    """

    def __init__(self, accelerator: str | None) -> None:
        self.accelerator = accelerator
        self.models: dict[tuple[str, str | None], TrainedModel] = {}

    def open(self, checkpoint: str, stage: str | None) -> TrainedModel:
        """See `lit_mm.annotation.experts.Models.open`."""
        from lit_mm.annotation.experts import TrainedModel
        from lit_mm.commands.benchmarks import digest_of_weights
        from lit_mm.commands.trained import launch_folder, open_model

        key = (str(Path(checkpoint).absolute()), stage)
        if key not in self.models:
            with launch_folder(checkpoint, stage=stage) as path:
                module = open_model(path, accelerator=self.accelerator)
                if module.device.type == "cuda":
                    module.to(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
                self.models[key] = TrainedModel(module, digest_of_weights(Path(path), None))
        return self.models[key]


def work(run: Any) -> None:
    """Annotate the shards of this process with a progress bar, and print the throughput.

    The first process shows its progress: as a bar on a terminal, and as a line every minute in a log.

    Args:
        run: a `lit_mm.annotation.run.Run`.
    """
    import time

    from lit_mm.stream.progress import bar

    start = last = time.monotonic()
    total = run.num_rows()

    def report_rows(completed: int) -> None:
        nonlocal last
        if run.rank:
            return
        progress(completed)
        if not sys.stderr.isatty() and time.monotonic() - last >= PAUSE:
            last = time.monotonic()
            print(f"lit_mm: annotating, {completed:,} of {total:,} rows of this process", file=sys.stderr)

    with bar("annotating", total if run.rank == 0 else 0) as progress:
        rows = run.work(report_rows)
    seconds = time.monotonic() - start
    by_expert = ", ".join(f"{name} {value:.0f} s" for name, value in run.engine.seconds.most_common())
    if rows:
        print(f"{rows:,} rows in {seconds:.0f} s, {rows / seconds:.2f} a second ({by_expert})", file=sys.stderr)


def report(run: Any) -> None:
    """Write ledger and page of a complete run, print the counts, and say which command comes next.

    Args:
        run: a `lit_mm.annotation.run.Run`.
    """
    from rich.console import Console

    from lit_mm.annotation.ledger import ledger_table, row_lines
    from lit_mm.annotation.shards import PAGE

    ledger = run.finish()
    for line in row_lines(ledger):
        print(line)
    Console(width=110, markup=False, emoji=False).print(ledger_table(ledger))
    print(f"look at: {run.folder / PAGE}")
    for subset, count in ledger["subsets"].items():
        if count:
            source = f"{{name: {subset}, format: captions, path: {run.folder.absolute()}/{subset}-*.tar}}"
            print(f"{subset}: {count:,} texts")
            print("next: " + shlex.join(["python", "-m", "lit_mm", "data", "check", "--source", source]))
