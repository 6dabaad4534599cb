"""`export`: write the weights of a run in a published layout."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from lit_mm.commands.export_start import START, TOKENIZERS, start_of, with_tokenizers
from lit_mm.commands.import_ import parts_of
from lit_mm.commands.options import Arguments
from lit_mm.errors import UserError

EPILOG = """examples:
  python -m lit_mm export runs/tuned --to exported --format hf
  python -m lit_mm export runs/tuned --to exported --format authors
  python -m lit_mm export runs/tuned --to adapter --format peft
  python -m lit_mm export runs/llava_1_5 --to exported --format hf --with vision=openai/clip-vit-large-patch14-336"""
FORMATS = ("hf", "authors", "peft")
GONE = "the names, configs and further tensors of its published files are needed. Name the run: --with import=RUN"
PARTS = ("vision", START, *TOKENIZERS)  # what --with may name


def export(arguments: Sequence[str]) -> None:
    """Write the weights of a run for transformers (hf), for the authors' code (authors), or its adapter alone (peft).

    Adapters are merged in hf and authors. In the layout of its import, a run keeps the names, shapes and dtypes of the
    published checkpoint. Tensors that no run holds, such as the last block of CLIP, come from the published files of
    the recipe or of --with. At the end the files are read again and compared, and so are transformers' logits.
    """
    parser = Arguments(prog="python -m lit_mm export", description=export.__doc__, epilog=EPILOG)
    parser.add_argument("run", help="run folder or checkpoint")
    parser.add_argument("--to", required=True, metavar="DIR", help="new folder for the files")
    parser.add_argument("--format", required=True, choices=FORMATS, help="layout of the files")
    parser.add_argument("--stage", help="export the end of this stage (default: the newest checkpoint)")
    parser.add_argument(
        "--with",
        dest="parts",
        action="append",
        default=[],
        metavar="PART=PLACE",
        help="vision=PLACE: published encoder of the run, whose name or last block the files need; import=RUN: the run "
        "that `import` wrote; tokenizer=PLACE, reading=PLACE: tokenizers of the run. The last three are needed only if "
        "the originals were moved. May be repeated",
    )
    parser.add_argument(
        "--proof_memory", type=float, metavar="GB", help="memory for the comparison (default: the free memory)"
    )
    parser.add_argument("--averaged", action="store_true", help="write moving averages for the weights that have them")
    choices = parser.parse_args(arguments)
    target = Path(choices.to)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--to {str(target)!r} exists and is not empty. Choose a new folder")
    if choices.proof_memory is not None and not choices.proof_memory >= 0:
        raise UserError(f"--proof_memory is at least 0 GB, got {choices.proof_memory}")
    parts = export_parts(choices)
    export_to(
        choices.run, target, choices.format, choices.stage, parts, choices.proof_memory, averaged=choices.averaged
    )


def export_parts(choices: argparse.Namespace) -> dict[str, str]:
    """Parse `--with PART=PLACE`.

    Raises:
        UserError: a value has another form, or another part is named.
    """
    parts = parts_of(choices)
    if unknown := sorted(parts.keys() - set(PARTS)):
        raise UserError(f"--with {unknown[0]}=...: an export takes {', '.join(PARTS)} alone")
    return parts


def export_to(
    run: str,
    target: Path,
    file_format: str,
    stage: str | None = None,
    parts: Mapping[str, str] | None = None,
    memory: float | None = None,
    *,
    averaged: bool = False,
) -> None:
    """Export a checkpoint to a new folder, and print what was done.

    Args:
        run: run folder or checkpoint.
        target: new folder.
        file_format: "hf", "authors" or "peft".
        stage: name of a stage, to export its end; None means the newest checkpoint.
        parts: part -> place of its published files.
        memory: gigabytes that the proof may take; None for those that are free now.
        averaged: True writes the moving averages of the weights that have one.
    Raises:
        UserError: the layout cannot hold the run, a tensor that no run holds is missing, or the files differ from the
            weights when they are read again.
    """
    from lit_mm.commands.trained import launch_folder

    target = target.absolute()
    parts = {part: absolute(place) for part, place in (parts or {}).items()}
    with launch_folder(run, None, stage) as path:
        part = target.with_name(target.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        try:
            part.mkdir(parents=True)
            part.rmdir()
        except OSError as error:
            raise UserError(
                f"--to {str(target)!r}: the folder cannot be created ({error.strerror}). Choose another one"
            ) from error
        complete = False
        try:
            lines = write_to(part, Path(path), file_format, parts, memory, averaged)
            complete = True
        finally:
            if not complete:
                shutil.rmtree(part, ignore_errors=True)
    if target.is_dir():
        target.rmdir()
    part.rename(target)
    print(f"{target}: from {path}")
    print("\n".join(lines))


def absolute(place: str) -> str:
    """Return the absolute path of a local place; a published name stays as it is."""
    path = Path(os.path.expanduser(place))
    return str(path.absolute()) if path.exists() else place


def write_to(
    folder: Path, path: Path, file_format: str, parts: Mapping[str, str], memory: float | None, averaged: bool
) -> list[str]:
    """Write the export of a checkpoint to a new folder. Return what was done and proved.

    Args:
        folder: the new folder.
        path: folder of the checkpoint.
        file_format, parts, memory, averaged: see `export_to`.
    Raises:
        UserError: see `export_to`.
    """
    import torch
    import yaml

    from lit_mm.checkpoints import reading
    from lit_mm.checkpoints.before import translate_config
    from lit_mm.commands.conversions.conversion import conversion_of, is_layout_of
    from lit_mm.commands.export_files import check_parts, write_output
    from lit_mm.commands.export_output import other_layout, published_files, same_layout, with_names
    from lit_mm.commands.export_peft import write_adapter
    from lit_mm.commands.recipe import RecipeCLI, quiet
    from lit_mm.commands.run_weights import RunWeights
    from lit_mm.module import family_of
    from lit_mm.weights.layouts.layout import layout_named

    checkpoint = reading.read(path)
    source, missing = start_of(path.parents[1], parts.get(START))
    recipe = with_tokenizers(translate_config(yaml.safe_load(checkpoint.config)), source, parts)
    parts = {part: place for part, place in parts.items() if part not in (START, *TOKENIZERS)}
    quiet()
    with torch.device("meta"):
        cli = RecipeCLI(recipe, "export", f"the config in {str(path)!r}", with_data=False)
    module = cli.model
    model, weights = recipe["model"], RunWeights(checkpoint, module, averaged=averaged)
    record = None if source is None else json.loads((source / "published.json").read_text())
    stages = {stage.name: stage for stage in reversed(cli.stages)}
    stage = stages.get(checkpoint.manifest["stage"]) or cli.stages[0]  # an import is no stage of its recipe
    family, objectives = family_of(module), module.weights_of_objectives(stage)
    same = record is not None and is_layout_of(record["layout"], family, file_format, objectives)
    if parts and (same or file_format == "peft"):
        raise UserError(
            "--with: the published files that this export needs are stored with the import. Leave --with out"
        )
    absent = f"{str(path)!r} started from {str(missing)!r}, which is not there any more"
    if file_format == "peft":
        if missing is not None:
            raise UserError(f"{absent}; {GONE}")
        return write_adapter(weights, model, source, folder, memory)
    if source is not None and record is not None and same:
        output, equal, lines = same_layout(source, record, model, weights), frozenset(), []
    else:
        try:
            conversion = conversion_of(family, file_format, objectives)
        except UserError as error:
            if missing is None:
                raise
            raise UserError(f"{absent}; {GONE}") from error
        files = conversion.files(module)
        needed = {part for part, _ in files.outside.values()}
        if unread := sorted(parts.keys() - needed - files.names.keys()):
            raise UserError(f"--with {unread[0]}=...: files of {conversion.layout} need nothing from it. Leave it out")
        published = published_files(needed, source, model, parts)
        files, equal, lines = with_names(layout_named(conversion.layout), files, weights, parts)
        output = other_layout(conversion.layout, files, model, weights, published)
        lines += [f"{absent}: written from the run alone"] if missing is not None else []
    left_out = check_parts(output, source, missing, equal)
    return [*write_output(output, folder, memory), *left_out, *lines]
