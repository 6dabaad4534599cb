"""`data`: check a data set, show a sample with what is learnt of it, index the pictures."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lit_mm.commands.options import RECIPE_OPTIONS, Arguments
from lit_mm.errors import UserError
from lit_mm.stream.progress import bar

if TYPE_CHECKING:  # seconds of import, which --help and a misspelt option need not wait for
    import lightning as L
    import numpy as np
    from PIL import Image
    from rich.text import Text

    from lit_mm.commands.recipe import RecipeCLI
    from lit_mm.documents.sources import SampleError
    from lit_mm.documents.sources.check import Summary
    from lit_mm.samples.processor import Processor, Sample
    from lit_mm.stages.stage import Stage

PROG = "python -m lit_mm data"
EPILOG = """examples:
  python -m lit_mm data check --config experiments/xcomposer2.yaml
  python -m lit_mm data check --source "{format: llava, path: chat.json, images: pictures}" --format json
  python -m lit_mm data show 17 --config experiments/xcomposer2.yaml --output sample.png
  python -m lit_mm data show 17 --config experiments/xcomposer2.yaml --data.init_args.questions 1
  python -m lit_mm data index --source "{format: captions, path: 'shards/{00000..00127}.tar'}"

formats: llava, qwen_vl, xcomposer, captions (WebDataset tar shards), obelics, mmc4, folder.
Indexes lie in $LIT_MM_CACHE (default: ~/.cache/lit_mm)."""
BROKEN = 2  # exit code of `check` where something is wrong
GAP = 4  # pixels between views


def data(arguments: Sequence[str]) -> None:
    """Check a data set without decoding pixels, show a sample with its label mask, or index its pictures."""
    parser = Arguments(prog=PROG, description=data.__doc__, epilog=EPILOG)
    actions = parser.add_subparsers(dest="action", required=True, metavar="check | show | index")

    check_parser = actions.add_parser("check", description=check.__doc__, help="what is wrong, with file and line")
    check_parser.add_argument("--format", choices=("table", "json"), default="table", help="what to print")
    check_parser.add_argument("--lines", type=int, default=100, help="errors to list, 0 for all (default: 100)")

    show_parser = actions.add_parser("show", description=show.__doc__, help="one sample as the model sees it")
    show_parser.add_argument("index", type=int, help="number of the sample, from 0")
    show_parser.add_argument("--output", metavar="PNG", help="where its views go (default: sample-<index>.png)")

    index_parser = actions.add_parser("index", description=index.__doc__, help="read all picture sizes once")
    index_parser.add_argument("--rebuild", action="store_true", help="read them again though they are indexed")

    for one in (check_parser, show_parser, index_parser):
        one.add_argument(
            "--config",
            action="append",
            help="a recipe: its data, and its model for `show`. As for fit, a later one overrides, and keys may follow "
            "(--data.init_args.path FILE)",
        )
        one.add_argument("--stage", help="of the recipe (default: all; the first for `show`)")
        one.add_argument(
            "--source", metavar="YAML", help="one source instead of the recipe's: {format: ..., path: ...}"
        )
    own, overrides = split_overrides(arguments)
    choices = parser.parse_args(own)
    if overrides and choices.config is None:
        raise UserError(f"{overrides[0]} changes a recipe: name it with --config")
    choices.recipe = [*(word for path in choices.config or () for word in ("--config", path)), *overrides]
    if choices.config is None and (choices.source is None or choices.action == "show"):
        needs = "--config" if choices.action == "show" else "--config or --source"
        raise UserError(f"data {choices.action} needs {needs} ({PROG} {choices.action} --help)")
    {"check": check, "show": show, "index": index}[choices.action](choices)


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments of `data` itself, and those that `fit` knows: keys of the recipe, each with its value."""
    keys = {"model", "data", "stages", "trainer", "seed_everything", *(option.name for option in RECIPE_OPTIONS)}
    own: list[str] = []
    overrides: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("--") or re.split(r"[.=]", argument[2:])[0] not in keys:
            own.append(argument)
            continue
        overrides.append(argument)
        if "=" not in argument and (value := next(rest, None)) is not None:
            overrides.append(value)
    return own, overrides


# --- check -----------------------------------------------------------------------------------------------------------
def check(choices: argparse.Namespace) -> None:
    """Go through all samples without decoding pixels: placeholders against images, ids, files, headers, empty answers,
    regions, JSON. Exit code 2 if anything is wrong."""
    from lit_mm.documents.sources.check import as_record, check_source

    if choices.lines < 0:
        raise UserError(f"--lines is at least 0, got {choices.lines}")
    errors_listed: list[tuple[str, SampleError]] = []
    summaries = []
    for name, source in sources_of(choices, heldout=True):

        def tell(error: SampleError, name: str = name) -> None:
            if not choices.lines or len(errors_listed) < choices.lines:
                errors_listed.append((name, error))

        with bar(f"checking {name}", len(source)) as progress:
            summaries.append(check_source(name, source, tell, progress))
    errors = sum(sum(summary.kinds.values()) for summary in summaries)
    if choices.format == "json":
        report = {
            "ok": not errors,
            "errors": errors,
            "findings": [as_record(*one) for one in errors_listed],
            "sources": [summary.as_dict() for summary in summaries],
        }
        print(json.dumps(report))
    else:
        for _, error in errors_listed:
            print(". ".join(filter(None, (f"{error.where}: {error.kind}: {error.reason}", error.remedy))))
        if errors > len(errors_listed):
            print(f"... and {errors - len(errors_listed)} more; --lines 0 lists all")
        print(summary_table(summaries))
    if errors:
        sys.exit(BROKEN)


def summary_table(summaries: Sequence[Summary]) -> str:
    """Samples, pictures and errors of every source, ready to print."""
    import io

    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAVY, pad_edge=False)
    for column, justify in (("source", "left"), ("samples", "right"), ("pictures", "right"), ("broken", "right")):
        table.add_column(column, justify=justify)
    table.add_column("errors")
    for one in summaries:
        kinds = ", ".join(f"{count} {kind}" for kind, count in one.kinds.most_common()) or "none"
        table.add_row(one.name, str(one.samples), str(one.pictures), str(one.broken), kinds)
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()).strip("\n")


# --- index -----------------------------------------------------------------------------------------------------------
def index(choices: argparse.Namespace) -> None:
    """Read the header of every picture once and keep the sizes; of a recipe, also lay out every sample once and keep
    its length, so that no later start has to. Interrupted, it goes on where it was."""
    from lit_mm.documents.sources import Source
    from lit_mm.documents.sources.cache import cache_folder

    for name, source in sources_of(choices):
        if not isinstance(source, Source):
            print(f"{name}: {len(source)} samples are generated, there is nothing to index")
            continue
        if choices.rebuild:
            source.forget_index()
        with bar(f"indexing {name}", len(source)) as progress:
            pictures, unknown = source.build_index(progress)
        print(
            f"{name}: {len(source)} samples, {pictures} pictures; the index is in {cache_folder()}"
            + (f". {unknown} pictures could not be read: `{PROG} check` says why" if unknown else "")
        )

    if choices.source is None:
        index_lengths(choices)


def index_lengths(choices: argparse.Namespace) -> None:
    """Find the lengths of all samples, under the layout of every stage."""
    from lit_mm.stream import lengths

    cli = parsed(choices.recipe, build=True)
    done = set()
    for stage in [one for one in cli.stages if choices.stage in (None, one.name)] or [None]:
        module = cli.data_of(stage)
        if not hasattr(module, "maker"):  # it plans no samples
            continue
        processors = {0: cli.model.processor} if stage is None else cli.model.processors_of(stage)
        for step, processor in processors.items():
            maker = module.maker(processor)
            for source, key in enumerate(lengths.keys_of(maker)):
                if key is None or key in done:
                    continue
                done.add(key)
                if choices.rebuild:
                    lengths.forget(maker, source)
                samples, name = maker.documents.sizes[source], maker.documents.names[source]
                with bar(f"lengths of {name}", samples) as progress:
                    unknown = lengths.build(maker, source, progress)
                print(
                    f"{name}: lengths of {samples} samples{layout_name(stage, step)}"
                    + (f"; {unknown} of them cannot be trained on" if unknown else "")
                )


def layout_name(stage: Stage | None, step: int) -> str:
    """The layout that lengths were counted under, for a message."""
    if stage is None:
        return ""
    return f" as stage {stage.name!r} lays them out" + (f" from step {step} on" if step else "")


# --- show ------------------------------------------------------------------------------------------------------------
def show(choices: argparse.Namespace) -> None:
    """Print a sample as the model sees it, what is learnt in colour, and write its views into one picture."""
    from rich.console import Console

    processor, documents = processor_and_documents(choices)
    if not 0 <= choices.index < len(documents):
        raise UserError(f"there are {len(documents)} samples, from 0 to {len(documents) - 1}; got {choices.index}")
    sample = processor.lay_out(documents[choices.index])
    length, document = sample.length, sample.document
    views = processor.views(sample) if length.views else []
    output = choices.output or f"sample-{choices.index}.png"
    if views:
        try:
            side_by_side([seen(view.numpy(), processor) for view in views]).save(output)
        except (OSError, ValueError) as error:
            raise UserError(
                f"the views cannot be written to {output!r} ({error}). Choose a .png with --output"
            ) from error
    visual = sum(stop - start for start, stop in sample.spans)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"sample {document.id!r} of {document.source or 'its source'}", markup=False)
    console.print(
        f"{length.tokens} tokens: {length.supervised} learnt, {visual} of pictures ({len(document.pictures)} pictures, "
        f"{length.views} views); the model takes {processor.max_length}",
        markup=False,
    )
    console.print(marked(sample, processor, coloured=console.is_terminal and console.color_system is not None))
    if views:
        console.print(f"its {len(views)} views are in {output}", markup=False)


def marked(sample: Sample, processor: Processor, *, coloured: bool) -> Text:
    """The sample's text; what is learnt stands out, each picture is one mark.

    Args:
        coloured: mark by colour; otherwise what is learnt stands between {+ and +}.
    """
    from rich.text import Text

    from lit_mm.samples.batch import IGNORE

    learnt = sample.labels != IGNORE
    learnt[:1] = False  # nothing predicts a first position
    text = Text()
    pictures = {start: number for number, (start, stop) in enumerate(sample.spans) if stop > start}
    at = 0
    while at < len(sample):
        if at in pictures:
            number = pictures[at]
            stop = sample.spans[number][1]
            picture = sample.document.pictures[number]
            size = f"{picture.width} x {picture.height}"
            text.append(f"[picture {number + 1}: {size}, {stop - at} tokens]", style="cyan")
            at = stop
            continue
        stop = at + 1
        while stop < len(sample) and learnt[stop] == learnt[at] and stop not in pictures:
            stop += 1
        piece = processor.tokenizer.decode(sample.input_ids[at:stop].tolist(), skip_special=False)
        if learnt[at]:
            text.append(piece if coloured else f"{{+{piece}+}}", style="bold green")
        else:
            text.append(piece)
        at = stop
    return text


def seen(view: np.ndarray, processor: Processor) -> Image.Image:
    """A normalised view [3, H, W] as it looks."""
    import numpy as np
    from PIL import Image

    mean, std = (np.array(one).reshape(3, 1, 1) for one in (processor.normalise.mean, processor.normalise.std))
    pixels = np.clip((view * std + mean) * 255, 0, 255).round().astype(np.uint8)
    return Image.fromarray(pixels.transpose(1, 2, 0))


def side_by_side(views: Sequence[Image.Image]) -> Image.Image:
    """Views in rows of about a square, in order, on grey."""
    from PIL import Image

    columns = max(1, round(len(views) ** 0.5 + 0.49))
    width, height = max(view.width for view in views) + GAP, max(view.height for view in views) + GAP
    rows = -(-len(views) // columns)
    sheet = Image.new("RGB", (min(columns, len(views)) * width + GAP, rows * height + GAP), "#808080")
    for number, view in enumerate(views):
        sheet.paste(view, (GAP + number % columns * width, GAP + number // columns * height))
    return sheet


# --- where the documents come from -----------------------------------------------------------------------------------
def sources_of(choices: argparse.Namespace, *, heldout: bool = False) -> Iterator[tuple[str, Any]]:
    """(name, source) of everything that is asked about.

    Args:
        heldout: also what the recipe examines on.
    """
    if choices.source is not None:
        source = declared(choices.source)
        yield source.name, source
        return
    for module in data_modules(choices.recipe, choices.stage):
        yield from flat(module.source())
    if heldout:
        # Where held-out documents have a source, it is checked as one; generated ones are made
        examined = module.heldout_source if hasattr(module, "heldout_source") else module.heldout()
        if examined:
            yield "held-out", examined


def flat(source: Any) -> Iterator[tuple[str, Any]]:
    """The sources that a mixture is made of, or the one."""
    inner = getattr(source, "sources", None)
    if inner is None:
        yield getattr(source, "name", None) or type(source).__name__, source
        return
    for at, one in enumerate(inner):
        for name, single in flat(one):
            yield (source.names[at] if hasattr(source, "names") else name), single


def declared(text: str) -> Any:
    """The source that `--source` declares."""
    import yaml

    from lit_mm.documents.sources import open_source

    try:
        declaration = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--source is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(declaration, dict):
        raise UserError(f'--source is a mapping such as "{{format: llava, path: chat.json}}", got {text!r}')
    return open_source(declaration)


def data_modules(recipe: Sequence[str], stage: str | None) -> list[L.LightningDataModule]:
    """The recipe's data modules, one for each stage whose data differ. The model is not built.

    Args:
        recipe: `--config` and overrides, as `fit` takes them.
    Raises:
        UserError: a mistake in the recipe, no data section in it, or no such stage.
    """
    cli = parsed(recipe, build=False)
    stages = [one for one in cli.stages if stage in (None, one.name)]
    if stage is not None and not stages:
        raise UserError(f"--stage names {stage!r}; the recipe has {[one.name for one in cli.stages]}")
    differing: list[Stage | None] = [
        one for at, one in enumerate(stages) if one.data not in [other.data for other in stages[:at]]
    ]
    return [cli.data_of(one) for one in differing or [None]]


def parsed(recipe: Sequence[str], *, build: bool) -> RecipeCLI:
    """The recipe, parsed as `fit` does.

    Args:
        build: make the model, without memory for its weights; otherwise its arguments are only checked.
    """
    from lit_mm.environment import check_torch_pair

    check_torch_pair()  # before lightning fails over it
    import torch

    from lit_mm.commands.recipe import RecipeCLI, quiet

    quiet()
    with torch.device("meta"):  # the processor needs the parts' sizes, not their weights: any model fits
        return RecipeCLI(recipe, "data", build=build)


def processor_and_documents(choices: argparse.Namespace) -> tuple[Processor, Any]:
    """The processor of the recipe's stage, and the documents by number."""
    cli = parsed(choices.recipe, build=True)
    named = {stage.name: stage for stage in cli.stages}
    if choices.stage is not None and choices.stage not in named:
        raise UserError(f"--stage names {choices.stage!r}; the recipe has {list(named)}")
    stage = named[choices.stage] if choices.stage else next(iter(named.values()), None)
    processor = cli.model.processor if stage is None else cli.model.processor_of(stage)
    if choices.source is not None:
        return processor, declared(choices.source)
    return processor, (cli.datamodule if stage is None else cli.data_of(stage)).source()
