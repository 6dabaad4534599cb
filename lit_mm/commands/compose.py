"""`compose` lets a model write an article and puts images of a folder into it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lit_mm.commands.config_text import without_allow
from lit_mm.commands.options import Arguments, utf8_text
from lit_mm.documents.printable import visible
from lit_mm.errors import UserError, counted, first_line

if TYPE_CHECKING:
    from lit_mm.composition.template import Template
    from lit_mm.documents.files import FilePicture
    from lit_mm.module import MultimodalModule

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff")
LIKELIHOOD = "lit_mm.composition.retrieve.ByLikelihood"
EPILOG = """The model writes an article, chooses the lines that an image should follow, and writes a caption for each.
For each caption, candidates are selected from the folder, and the model chooses one. --out gets article.md,
article.html, images/ and composition.json, which records every step.

--retriever is a class such as lit_mm.composition.retrieve.ByFileName, or a YAML file with its class_path and init_args.
Its method over(module, pictures) returns a function (caption, count, exclude) -> numbers of pictures."""


def compose(arguments: Sequence[str]) -> None:
    """Write an illustrated article: the model writes the text and chooses images from a folder."""
    parser = Arguments(prog="python -m lit_mm compose", description=compose.__doc__, epilog=EPILOG)
    parser.add_argument(
        "checkpoint", nargs="?", default="runs/latest", help="run folder or checkpoint (default: runs/latest)"
    )
    parser.add_argument(
        "--instruction", type=utf8_text, required=True, metavar="TEXT", help="topic of the article, as an instruction"
    )
    parser.add_argument(
        "--images", required=True, metavar="FOLDER", help="folder of images, searched with its subfolders"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="new or empty folder for the article")
    parser.add_argument("--slots", type=int, help="number of images in the article (default: the model decides)")
    parser.add_argument(
        "--candidates", type=int, default=4, help="number of candidate images for each place (default: 4)"
    )
    parser.add_argument(
        "--retriever",
        default=LIKELIHOOD,
        help="class or YAML file that selects the candidates (default: the model, by likelihood)",
    )
    parser.add_argument("--template", help="template: xcomposer or xcomposer2 (default: that of the model's family)")
    parser.add_argument("--max_new_tokens", type=int, help="longest article, tokens (default: that of the template)")
    parser.add_argument("--seed", type=int, default=0, help="seed of sampling (default: 0)")
    parser.add_argument("--config", help="build the model from this config instead of that of the checkpoint")
    parser.add_argument("--allow", metavar="PACKAGE", help="allow classes of this package for --retriever")
    choices = parser.parse_args(arguments)
    without_allow(arguments)
    if not choices.instruction.strip():
        raise UserError("--instruction is empty. Describe the topic of the article")
    if choices.slots is not None and choices.slots < 0:
        raise UserError(f"--slots is at least 0, got {choices.slots}")
    if not 1 <= choices.candidates <= 26:
        raise UserError(f"--candidates is 1 to 26, one letter each, got {choices.candidates}")
    if choices.max_new_tokens is not None and choices.max_new_tokens < 1:
        raise UserError(f"--max_new_tokens is at least 1, got {choices.max_new_tokens}")
    image_paths, out = image_files(Path(choices.images)), Path(choices.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {choices.out!r} exists and is not an empty folder. Choose another folder, or empty it")

    from lit_mm.commands.trained import open_model  # seconds of import, which --help does not wait for
    from lit_mm.composition.compose import compose as run
    from lit_mm.composition.publish import publish
    from lit_mm.composition.writer import Writer

    pictures = open_pictures(image_paths)
    search = make_search(choices.retriever)
    module = open_model(choices.checkpoint, choices.config)
    template = template_of(module, choices.template)
    if choices.max_new_tokens is not None:
        template = replace(
            template, decode_article=replace(template.decode_article, max_new_tokens=choices.max_new_tokens)
        )
    writer = Writer(module, template.context, choices.seed)
    article = run(
        choices.instruction,
        pictures,
        writer,
        search.over(module, pictures),
        template,
        slots=choices.slots,
        candidates=choices.candidates,
        fits=writer.fits,
    )
    files = publish(article, pictures, out)
    for note in article.notes:
        print(f"note: {visible(note)}")
    count = sum(slot.image is not None for slot in article.slots)
    print(
        f"{counted(len(article.lines), 'line')} and {counted(count, 'image')}: {files['markdown']} and {files['html']}"
    )


def image_files(folder: Path) -> list[Path]:
    """List the image files of a folder and its subfolders by their endings, sorted and without hidden files.

    Raises:
        UserError: the folder does not exist or has no image.
    """
    if not folder.is_dir():
        raise UserError(f"--images {str(folder)!r} is no folder")
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(piece.startswith(".") for piece in path.relative_to(folder).parts)
    ]
    if not files:
        raise UserError(f"--images {str(folder)!r} holds no image; files end in {', '.join(SUFFIXES)}")
    return files


def open_pictures(files: Sequence[Path]) -> list[FilePicture]:
    """Open the images that can be decoded. A line on standard error names each of the others.

    Raises:
        UserError: no image can be decoded.
    """
    from lit_mm.documents.decode import PictureError, decode
    from lit_mm.documents.files import FilePicture

    pictures = []
    for path in files:
        try:
            decode(path)  # decoded whole, because a file that is cut short has a good header
            pictures.append(FilePicture.open(path))
        except PictureError as error:
            print(f"lit_mm: left out: {error}", file=sys.stderr)
    if not pictures:
        raise UserError(f"none of the {len(files)} image files of --images can be decoded")
    return pictures


def template_of(module: MultimodalModule, name: str | None) -> Template:
    """Return the composition template of this name, or the one that belongs to the model's chat template.

    Raises:
        UserError: the template does not exist, or the model's chat template has none.
    """
    from lit_mm.composition.template import TEMPLATES
    from lit_mm.prompts.xcomposer import XComposerPrompt
    from lit_mm.prompts.xcomposer2 import XComposer2Prompt

    if name is None:
        prompt = module.processor.prompt
        name = {XComposerPrompt: "xcomposer", XComposer2Prompt: "xcomposer2"}.get(type(prompt))
        if name is None:
            raise UserError(
                f"compose: {type(prompt).__name__} has no composition template of its own; "
                f"choose one with --template {' or '.join(TEMPLATES)}"
            )
    if module.processor.token_grid is None:
        raise UserError("compose: this model reads only text. Use a model that takes images")
    if name not in TEMPLATES:
        raise UserError(f"--template is one of {', '.join(TEMPLATES)}, got {name!r}")
    return TEMPLATES[name]


def make_search(reference: str) -> Any:
    """Build a `lit_mm.composition.retrieve.Search` from a class path, or a YAML file with `class_path` and `init_args`.

    Raises:
        UserError: the file or class does not exist, the class refuses the arguments, or it has no method `over`.
    """
    from lit_mm.commands.signatures import resolve
    from lit_mm.composition.retrieve import Search

    path, options = reference, {}
    if reference.endswith((".yaml", ".yml")):
        try:
            config = yaml.safe_load(Path(reference).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"--retriever {reference!r} cannot be read: {first_line(error)}") from error
        if not isinstance(config, dict) or not isinstance(config.get("class_path"), str):
            raise UserError(f"--retriever {reference!r} needs `class_path:` and, if it takes any, `init_args:`")
        if odd := sorted(set(config) - {"class_path", "init_args"}):
            raise UserError(f"--retriever {reference!r} has the keys class_path and init_args, got {odd}")
        path, options = config["class_path"], config.get("init_args") or {}
    try:
        search_class = resolve(path)
    except UserError as error:
        raise UserError(f"--retriever: {error}") from error
    if not (isinstance(search_class, type) and issubclass(search_class, Search)):
        raise UserError(f"--retriever: {path} has no method `over(module, pictures)`, which selects the images")
    try:
        return search_class(**options)
    except TypeError as error:
        raise UserError(f"--retriever: {path} does not take {options} ({error})") from error
