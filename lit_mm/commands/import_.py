"""`import`: turn a published checkpoint into a run that can be asked, evaluated and fine-tuned."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lit_mm.commands.options import Arguments
from lit_mm.errors import UserError

if TYPE_CHECKING:
    from lit_mm.commands.published import Published

EPILOG = """examples:
  python -m lit_mm import llava-hf/llava-1.5-7b-hf --to runs/llava
  python -m lit_mm import liuhaotian/llava-v1.5-7b --with vision=openai/clip-vit-large-patch14-336 --to runs/llava
  python -m lit_mm generate runs/llava --image page.png --question "What is this?"
  python -m lit_mm fit --config runs/llava/recipe.yaml --init_from runs/llava --data.path my_data.json"""
CONFIGS = (
    *("generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("chat_template.json", "chat_template.jinja", "adapter_config.json"),
)  # files beside those of the tokenizer that are copied along
FOLDERS = ("qformer_tokenizer",)  # tokenizers of second texts


def import_(arguments: Sequence[str]) -> None:
    """Turn a published checkpoint into a run with its recipe. One group of tensors is in memory at a time. Files of
    torch before version 1.6 need the memory of a whole file."""
    parser = Arguments(prog="python -m lit_mm import", description=import_.__doc__, epilog=EPILOG)
    parser.add_argument("place", nargs="?", help="checkpoint: a folder, a file, or a published name")
    parser.add_argument("--to", metavar="RUN", help="new run folder")
    parser.add_argument(
        "--with",
        dest="parts",
        action="append",
        default=[],
        metavar="PART=PLACE",
        help="folder, file or published name of a part that the checkpoint lacks (see --list), or of a tokenizer; may "
        "be repeated",
    )
    parser.add_argument("--layout", help="name of the layout, if the files are ambiguous (see --list)")
    parser.add_argument(
        "--template",
        metavar="NAME",
        help="chat template of the checkpoint (default: detected from its files)",
    )
    parser.add_argument(
        "--proof",
        choices=("some", "full"),
        default="some",
        help="decoder layers that are compared with transformers: the first two and the last, or all (default: some)",
    )
    parser.add_argument(
        "--proof_memory", type=float, metavar="GB", help="memory for the comparison (default: the free memory)"
    )
    parser.add_argument("--list", action="store_true", help="list the layouts that can be imported")
    choices = parser.parse_args(arguments)
    if choices.list:
        print(listing())
        return
    if choices.place is None or choices.to is None:
        raise UserError("import needs a checkpoint and --to RUN (--help shows examples)")
    run = Path(choices.to)
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise UserError(f"--to {str(run)!r} exists and is not empty. Choose a new folder")
    if choices.proof_memory is not None and not choices.proof_memory >= 0:
        raise UserError(f"--proof_memory is at least 0 GB, got {choices.proof_memory}")
    with new_folder(run):
        path, published = import_to(choices.place, parts_of(choices), run, choices.layout, choices.template)
        from lit_mm.checkpoints.reading import read
        from lit_mm.commands.proof import prove, summary

        figures = prove(published, read(path).weight, choices.proof_memory, choices.proof == "full")
        (run / "proof.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(summary(figures))
    for use, words in next_commands(run, published.layout.writes):
        print(f"{use + ':':10} python -m lit_mm {shlex.join(words)}")


def next_commands(run: Path, writes: bool) -> list[tuple[str, list[str]]]:
    """Return the next commands for an imported run, each with the words that say what it is for.

    Args:
        run: folder of the run.
        writes: False for a model that only compares images with texts, which no question can be asked.
    """
    ask = ["generate", str(run), "--image", "page.png", "--question", "What is this?"]
    measure = ["evaluate", str(run), "--data", "{format: llava, path: my_data.json}"]
    tune = ["fit", "--config", f"{run}/recipe.yaml", "--init_from", str(run), "--data.path", "my_data.json"]
    return [("ask it", ask) if writes else ("measure it", measure), ("fine-tune", tune)]


def listing() -> str:
    """Describe the known layouts, one line each."""
    from lit_mm.weights.layouts.layout import all_layouts

    rows = [("layout", "example", "parts from elsewhere")]
    rows += [(known.name, known.example, ", ".join(known.separate) or "-") for known in all_layouts()]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def parts_of(choices: argparse.Namespace) -> dict[str, str]:
    """Parse `--with PART=PLACE`.

    Raises:
        UserError: a value has another form, or names a part twice.
    """
    parts: dict[str, str] = {}
    for text in choices.parts:
        part, equals, place = text.partition("=")
        if not (part and equals and place) or part in parts:
            raise UserError(
                f"--with is PART=PLACE, each part once, such as vision=openai/clip-vit-large-patch14-336, got {text!r}"
            )
        parts[part] = place
    return parts


def prompt_line(published: Published) -> str:
    """Say in one line which prompt an import has, and how a chat template was found."""
    from lit_mm.weights.layouts.chats import CHAT, chat_of, language_kind

    section = published.recipe["model"]["init_args"]["inputs"].get("prompt")
    if section is None:
        return f"prompt: {type(published.module.processor.prompt).__name__}"
    name, template = section["class_path"].rpartition(".")[2], section.get("init_args", {}).get("template")
    line = f"prompt: {name}" + (f" with the template {template}" if template else "")
    if section["class_path"] != CHAT:
        return line
    chat = chat_of(published.main, language_kind(published.main))
    return f"{line}, {chat.reason}" + ("" if published.main.template else "; --template NAME takes another one")


def import_to(
    place: str, parts: dict[str, str], run: Path, layout: str | None = None, template: str | None = None
) -> tuple[Path, Published]:
    """Import a checkpoint to a new run folder. Return the new checkpoint's path and its source.

    Args:
        place: folder, file or published name.
        parts: part -> place of a part that the checkpoint lacks.
        run: new folder; it gets checkpoints/, config.yaml, recipe.yaml, tokenizer/, published.json and published/.
        layout: name of the layout; None recognises it.
        template: name of the chat template; None: the files tell.
    Raises:
        UserError: see `Published.open` and `write_checkpoint`.
    """
    from lit_mm.commands.published import Published

    published = Published.open(place, parts, layout, template)
    print(f"{place}: {published.layout.name}, {len(published.plan.sources)} tensors")
    for path in (path for files in published.files.values() for path in files.legacy):
        size = path.stat().st_size / 1e9
        print(f"{path} has the format of torch before 1.6: reading it takes {size:.1f} GB of memory")
    print(prompt_line(published))
    try:
        published.module.check_vocabulary()
    except UserError as error:  # questions in words of the table can be answered; fit refuses the model
        print(f"fit will refuse this checkpoint: {error}, or --with tokenizer=PLACE")
    try:
        return write_run(published, run), published
    except OSError as error:
        raise UserError(
            f"the import to {str(run)!r} failed: {error.strerror or error}. Free some disk space, or choose "
            "another folder with --to"
        ) from error


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Leave no folder behind if what fills it fails.

    Args:
        folder: folder that is not there, or empty.
    """
    complete = False
    try:
        yield
        complete = True
    finally:
        if not complete:
            shutil.rmtree(folder, ignore_errors=True)


def write_run(published: Published, run: Path) -> Path:
    """Write the run of an opened checkpoint to an empty folder. Return the path of the run's checkpoint."""
    import yaml

    from lit_mm.checkpoints.importing import write_checkpoint
    from lit_mm.commands.published import as_record, build
    from lit_mm.module import family_of
    from lit_mm.weights.provenance import elements_of
    from lit_mm.weights.stream import write

    arguments = published.recipe["model"]["init_args"]
    run.mkdir(parents=True, exist_ok=True)
    tokenizer = Path(arguments["tokenizer"])
    copy_configs(tokenizer, run / "tokenizer")
    copy_configs(published.place if published.place.is_dir() else published.place.parent, run / "published")
    arguments["tokenizer"] = str((run / "tokenizer").absolute())
    if "reading" in arguments:
        second = Path(arguments["reading"]["tokenizer"])
        folder = run / "tokenizer" if second == tokenizer else run / "tokenizer" / FOLDERS[0]
        if not folder.exists():
            copy_configs(second, folder)
        arguments["reading"]["tokenizer"] = str(folder.absolute())
    module, config = build(published.recipe)
    group_of = {name: group for group in published.plan.groups for name in group.targets}
    waiting: dict[str, object] = {}

    def elements(name: str) -> Iterable[memoryview]:
        if name in published.fresh:
            return elements_of(published.start_value(name))
        if name not in waiting:
            waiting.update(published.plan.compute(group_of[name], published.read))
        return elements_of(waiting.pop(name))

    names = {id(tensor): name for name, tensor in module.named_parameters()}
    by_part = {part: [names[id(p)] for p in tensors.values()] for part, tensors in module.parts().items()}
    filled = {**published.plan.targets, **published.fresh_stored}
    tensors = {name: filled[name] for name in module.state_dict() if name in filled}
    path = write_checkpoint(run / "checkpoints", config, family_of(module), by_part, tensors, elements)
    (run / "config.yaml").write_text(config)
    (run / "recipe.yaml").write_text(f"# {published.place}\n" + yaml.safe_dump(published.recipe, sort_keys=False))
    unused = {name: published.plan.sources[name] for name in published.plan.unused}
    write(run / "published.safetensors", unused, lambda name: elements_of(published.read(name)), {"format": "pt"})
    (run / "published.json").write_text(json.dumps(as_record(published), indent=1) + "\n")
    print(f"{path}: {len(tensors)} tensors. {len(unused)} tensors that the model does not read are kept beside it")
    if published.fresh:
        parameters = set(names.values())
        inner = {name: name.removeprefix("network.") for name in published.fresh}
        parts = {module.part_of(of) if name in parameters else of.partition(".")[0] for name, of in inner.items()}
        print(f"{len(published.fresh)} tensors are in no file and start anew, in {', '.join(sorted(parts))}")
    return path


def copy_configs(source: Path, target: Path) -> None:
    """Copy the configs and the tokenizer of a folder, and of its folders of further tokenizers and of parts.

    JSON loses a byte order mark, with which transformers would not read it.
    """
    from lit_mm.prompts.files import FILES
    from lit_mm.weights.files import PART_FOLDERS

    target.mkdir(parents=True)
    for name in (*FILES, *CONFIGS):
        if (source / name).is_file():
            data = (source / name).read_bytes()
            (target / name).write_bytes(data.removeprefix(BOM_UTF8) if name.endswith(".json") else data)
    for name in (*FOLDERS, *PART_FOLDERS):
        if (source / name).is_dir():
            copy_configs(source / name, target / name)
