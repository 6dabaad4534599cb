"""`export`: write the weights of a run in a published layout."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_mm.commands.import_ import copy_configs, parts_of
from lit_mm.commands.options import Arguments
from lit_mm.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from lit_mm.commands.conversions.conversion import Files
    from lit_mm.commands.run_weights import RunWeights
    from lit_mm.weights.files import TensorFiles
    from lit_mm.weights.provenance import Plan
    from lit_mm.weights.stream import Stored

EPILOG = """examples:
  python -m lit_mm export runs/tuned --to exported --format hf
  python -m lit_mm export runs/tuned --to exported --format authors
  python -m lit_mm export runs/tuned --to adapter --format peft
  python -m lit_mm export runs/llava_1_5 --to exported --format hf --with vision=openai/clip-vit-large-patch14-336"""
FORMATS = ("hf", "authors", "peft")
SHARD = 5_000_000_000  # most bytes of tensors in one file
PARTS = ("vision", "language")  # parts whose published files may hold tensors that no run holds


@dataclass(frozen=True)
class Output:
    """What an export writes.

    Attributes:
        layout: name of the layout.
        plan: groups of tensors of the files and of the model.
        weights: weights of the run.
        outside: function from the name of a tensor that the model does not have to its value.
        rows: see `lit_mm.commands.conversions.conversion.Files`.
        copy: function that writes configs and tokenizer to a new folder.
        is_hf: True if transformers opens the files.
        copies: name of a tensor of the files -> name of the tensor that it repeats.
        absent: function that returns True for a tensor of the model that the layout never holds.
        converts: True for a layout that the run was not imported from.
    """

    layout: str
    plan: Plan
    weights: RunWeights
    outside: Callable[[str], Tensor]
    copy: Callable[[Path], None]
    rows: Mapping[str, int] = field(default_factory=dict)
    is_hf: bool = False
    copies: Mapping[str, str] = field(default_factory=dict)
    absent: Callable[[str], bool] = lambda name: False
    converts: bool = False

    @property
    def tensors(self) -> dict[str, Stored]:
        """Return dtype and shape of every tensor of the files, by name; a part from another place is not among them."""
        tensors = {
            name: stored if name not in self.rows else type(stored)(stored.dtype, (self.rows[name], *stored.shape[1:]))
            for name, stored in self.plan.sources.items()
            if ":" not in name
        }
        return tensors | {name: tensors[original] for name, original in self.copies.items()}

    def values(self) -> Callable[[str], Tensor]:
        """Return a function from the name of a tensor of the files to its value."""
        group_of = {name: group for group in self.plan.groups for name in group.sources}
        waiting: dict[str, Tensor] = {}

        def value(name: str) -> Tensor:
            name = self.copies.get(name, name)
            if name in self.plan.unused:
                return self.outside(name)
            if name not in waiting:
                values = {target: self.weights.weight(target) for target in group_of[name].targets}
                waiting.update(self.plan.invert(group_of[name], values))
            return with_rows(waiting.pop(name), self.rows.get(name))

        return value


def export(arguments: Sequence[str]) -> None:
    """Write the weights of a run in the layout of transformers (hf) or of the family's authors, with adapters merged,
    or its adapter alone (peft). A run that started from an imported checkpoint has the names, shapes and dtypes of that
    checkpoint in its own layout. Tensors that no run holds, such as the last block of CLIP, come from the published
    files of the recipe, or from those that --with names. The files are read again and compared at the end, and so are
    transformers' logits."""
    parser = Arguments(prog="python -m lit_mm export", description=export.__doc__, epilog=EPILOG)
    parser.add_argument("run", help="run folder or checkpoint")
    parser.add_argument("--to", required=True, metavar="DIR", help="new folder")
    parser.add_argument("--format", required=True, choices=FORMATS, help="layout of the files")
    parser.add_argument("--stage", help="export the end of this stage (default: the run's newest checkpoint)")
    parser.add_argument(
        "--with",
        dest="parts",
        action="append",
        default=[],
        metavar="PART=PLACE",
        help="folder, file or published name of the encoder whose tensors behind the features the files need",
    )
    parser.add_argument("--proof_memory", type=float, metavar="GB", help="memory of the proof (default: what is free)")
    choices = parser.parse_args(arguments)
    target = Path(choices.to)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--to {str(target)!r} is there already and not empty. Give a new folder")
    parts = export_parts(choices)
    export_to(choices.run, target, choices.format, choices.stage, parts, choices.proof_memory)


def export_parts(choices: argparse.Namespace) -> dict[str, str]:
    """Parse `--with PART=PLACE`.

    Raises:
        UserError: a value has another form, or another part is named.
    """
    parts = parts_of(choices)
    if unknown := sorted(parts.keys() - set(PARTS)):
        raise UserError(f"--with {unknown[0]}=...: the parts whose published files an export may read are {PARTS}")
    return parts


def imported_run(run: Path) -> Path | None:
    """Follow the starts of a run back to the run that `import` made. Return None if there is none.

    Raises:
        UserError: a run on the way is gone.
    """
    place = run
    while not (place / "published.json").is_file():
        start = place / "init_from.json"
        if not start.is_file():
            return None
        place = Path(json.loads(start.read_text())["checkpoint"]).parents[1]
        if not place.is_dir():
            raise UserError(f"{str(run)!r} started from {str(place)!r}, which is not there any more. Put it back")
    return place


def export_to(
    run: str,
    target: Path,
    file_format: str,
    stage: str | None = None,
    parts: Mapping[str, str] | None = None,
    memory: float | None = None,
) -> None:
    """Export a checkpoint to a new folder, and print what was done.

    Args:
        run: run folder or checkpoint.
        target: new folder.
        file_format: "hf", "authors" or "peft".
        stage: name of a stage, to export its end; None means the newest checkpoint.
        parts: part -> place of its published files.
        memory: gigabytes that the proof may take; None for those that are free now.
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
        complete = False
        try:
            lines = write_to(part, Path(path), file_format, parts, memory)
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
    return str(Path(place).absolute()) if Path(place).exists() else place


def write_to(folder: Path, path: Path, file_format: str, parts: Mapping[str, str], memory: float | None) -> list[str]:
    """Write the export of a checkpoint to a new folder. Return what was done and proved.

    Args:
        folder: the new folder.
        path: folder of the checkpoint.
        file_format, parts, memory: see `export_to`.
    Raises:
        UserError: see `export_to`.
    """
    import torch
    import yaml

    from lit_mm.checkpoints import reading
    from lit_mm.checkpoints.before import translate_config
    from lit_mm.commands.conversions.conversion import conversion_of
    from lit_mm.commands.export_peft import write_adapter
    from lit_mm.commands.recipe import RecipeCLI, quiet
    from lit_mm.commands.run_weights import RunWeights
    from lit_mm.module import family_of

    checkpoint = reading.read(path)
    recipe = translate_config(yaml.safe_load(checkpoint.config))
    quiet()
    with torch.device("meta"):
        cli = RecipeCLI(recipe, "export", f"the config in {str(path)!r}", with_data=False)
    module = cli.model
    model, weights = recipe["model"], RunWeights(checkpoint, module)
    source = imported_run(path.parents[1])
    if file_format == "peft":
        return write_adapter(weights, model, source, folder, memory)
    record = None if source is None else json.loads((source / "published.json").read_text())
    if source is not None and record is not None and record["layout"].endswith(f"/{file_format}"):
        output = same_layout(source, record, model, weights)
    else:
        stages = {stage.name: stage for stage in reversed(cli.stages)}
        stage = stages.get(checkpoint.manifest["stage"]) or cli.stages[0]  # an import is no stage of its recipe
        conversion = conversion_of(family_of(module), file_format, module.weights_of_objectives(stage))
        published = published_files(source, model, parts)
        output = other_layout(conversion.layout, conversion.files(module), model, weights, published)
    left_out = check_parts(output, source)
    return [*write_output(output, folder, memory), *left_out]


def same_layout(source: Path, record: dict[str, Any], model: dict[str, Any], weights: RunWeights) -> Output:
    """Describe an export to the layout that a run was imported from.

    Args:
        source: run that `import` made.
        record: its `published.json`.
        model: section `model` of the recipe.
        weights: weights of the run.
    """
    from lit_mm.commands.published import rename_of
    from lit_mm.weights.files import TensorFiles
    from lit_mm.weights.layouts.layout import all_layouts
    from lit_mm.weights.provenance import plan
    from lit_mm.weights.stream import Stored

    layout = next(layout for layout in all_layouts() if layout.name == record["layout"])
    copies = record.get("copies", {})
    tensors = {name: entry for name, entry in record["tensors"].items() if name not in copies}
    stored = {name: Stored(dtype, tuple(shape)) for name, (dtype, shape) in tensors.items()}
    opened = plan(stored, rename_of(layout, model, weights.module, record["parts"], record["adapter"]))
    return Output(
        layout.name,
        opened,
        weights,
        TensorFiles([source / "published.safetensors"]).__getitem__,
        lambda folder: copy_configs(source / "published", folder),
        is_hf=layout.in_transformers,
        copies=copies,
        absent=lambda name: layout.start(name) is not None,
    )


def other_layout(
    name: str, files: Files, model: dict[str, Any], weights: RunWeights, published: Mapping[str, list[TensorFiles]]
) -> Output:
    """Describe an export to a layout that a run was not imported from.

    Args:
        name: name of the layout.
        files: description of its files.
        model: section `model` of the recipe.
        weights: weights of the run.
        published: part -> published files that may hold its tensors behind the features.
    Raises:
        UserError: the files do not hold the model exactly, or a tensor that no run holds is missing.
    """
    from lit_mm.checkpoints.contents import kept_tensors
    from lit_mm.commands.published import rename_of
    from lit_mm.weights.convert import shorten
    from lit_mm.weights.layouts.layout import all_layouts
    from lit_mm.weights.provenance import TYPES, plan

    layout = next(layout for layout in all_layouts() if layout.name == name)
    opened = plan(files.tensors, rename_of(layout, model, weights.module, [], {}))
    tensors = dict(kept_tensors(weights.module))
    parts = {target.split(".")[1] for target in opened.targets}
    problems = [target for target in opened.targets if target not in tensors]
    needed = [target for target in tensors if layout.start(target) is None]
    problems += [target for target in needed if target not in opened.targets and target.split(".")[1] in parts]
    problems += [source for source in opened.unused if source not in files.outside]
    problems += [
        target
        for target, stored in opened.targets.items()
        if target in tensors and tensors[target].shape != stored.shape
    ]
    if problems:
        raise UserError(
            f"{layout.name} cannot hold this {type(weights.module).__name__}: {len(problems)} tensors are on one side "
            f"alone or have other shapes, such as {shorten(problems[:3])}. Layers that a recipe adds, such as partial "
            "LoRA, have no place in these files"
        )
    places = {target: find_outside(layout.name, target, files, published) for target in files.outside}
    return Output(
        layout.name,
        opened,
        weights,
        lambda target: places[target][0][places[target][1]].to(TYPES[files.tensors[target].dtype]),
        lambda folder: write_texts(folder, files, files.tokenizer or model["init_args"]["tokenizer"]),
        files.rows,
        layout.in_transformers,
        absent=lambda name: layout.start(name) is not None,
        converts=True,
    )


def find_outside(
    layout: str, name: str, files: Files, published: Mapping[str, list[TensorFiles]]
) -> tuple[TensorFiles, str]:
    """Find a tensor that no run holds; return the files that have it, and its name there.

    Raises:
        UserError: no files have it.
    """
    part, ending = files.outside[name]
    shape = files.tensors[name].shape
    for opened in published.get(part, []):
        for other, stored in opened.stored.items():
            if re.split("[.:]", other)[-len(ending.split(".")) :] == ending.split(".") and stored.shape == shape:
                return opened, other
    raise UserError(
        f"{layout} has {len(files.outside)} tensors that no run holds, such as {name!r} {shape}: the {part} encoder "
        f"behind the layer that is read. Name its published files: --with {part}=openai/clip-vit-large-patch14-336, or "
        "a folder of the encoder that the run was trained with"
    )


def published_files(
    source: Path | None, model: dict[str, Any], parts: Mapping[str, str]
) -> dict[str, list[TensorFiles]]:
    """Open the published files of parts: of `--with`, of the recipe's `weights`, and of the import, in this order.

    Args:
        source: run that `import` made; None for a run that was not imported.
        model: section `model` of the recipe.
        parts: part -> place.
    """
    from lit_mm.weights.files import TensorFiles, tensor_files
    from lit_mm.weights.source import MAPS, is_published_name, local_place, places_of

    opened: dict[str, list[TensorFiles]] = {}
    for part in PARTS:
        places = [parts[part]] if part in parts else []
        section = model["init_args"].get(part)
        reference = (section.get("init_args", {}).get("weights") if isinstance(section, dict) else None) or ""
        kind, _, joined = reference.partition(":")
        if kind in MAPS and part not in parts:
            places += [place for place in places_of(joined) if Path(place).exists() or is_published_name(place)]
        opened[part] = [TensorFiles(tensor_files(local_place(place))) for place in places]
        if source is not None:
            opened[part].append(TensorFiles([source / "published.safetensors"]))
    return opened


def check_parts(output: Output, source: Path | None) -> list[str]:
    """Refuse to lose what a run has trained in a part that the files do not hold. Return a line about tensors that the
    layout never holds, if the run has trained some, or was imported from a layout that may hold them.

    Args:
        output: export.
        source: run that `import` made; None for a run that was not imported.
    Raises:
        UserError: a tensor of such a part is neither the published nor the imported one.
    """
    import torch

    from lit_mm.checkpoints import manifest, reading
    from lit_mm.checkpoints.contents import kept_tensors
    from lit_mm.weights.convert import shorten

    groups = [group for group in output.plan.groups if not all(":" in name for name in group.sources)]
    in_files = {name for group in groups for name in group.targets}
    imported = None if source is None else reading.read(manifest.find(source))
    module = output.weights.module
    parameters = {name for name, _ in module.named_parameters()}

    def part_of(name: str) -> str:
        inner = name.removeprefix("network.")
        return module.part_of(inner) if name in parameters else inner.partition(".")[0]

    left_out: set[str] = set()
    for name, _ in kept_tensors(output.weights.module):
        if name in in_files:
            continue
        if output.converts and output.absent(name):
            left_out.add(part_of(name))
            continue
        if output.weights.is_frozen(name):
            continue
        start = None
        if imported is not None and name in imported.manifest["weights"]:
            start = imported.weight(name)
        value = output.weights.weight(name)
        if start is None or not torch.equal(value.to(start.dtype), start):
            if output.absent(name):
                left_out.add(part_of(name))
                continue
            path, part = output.weights.checkpoint.path, name.split(".")[1]
            raise UserError(
                f"{str(path)!r} has trained the part {part!r} ({name!r} differs from the published one), and the files "
                f"of {output.layout} do not hold this part. Export to a layout that holds it"
            )
    return [f"left out, because {output.layout} has no place for it: {shorten(sorted(left_out))}"] if left_out else []


def with_rows(table: Tensor, rows: int | None) -> Tensor:
    """Append copies of the mean row to a table until it has `rows` rows; None changes nothing."""
    import torch

    if rows is None:
        return table
    mean = table.double().mean(0, keepdim=True).to(table.dtype)
    return torch.cat([table, mean.expand(rows - len(table), -1)])


def write_texts(folder: Path, files: Files, tokenizer: str) -> None:
    """Write configs and tokenizer of a layout to a new folder.

    Args:
        folder: the new folder.
        files: description of the layout's files.
        tokenizer: reference of the run's tokenizer.
    """
    from lit_mm.prompts.save import save_tokenizer
    from lit_mm.prompts.source import load_tokenizer

    folder.mkdir(parents=True)
    writes_bos = save_tokenizer(tokenizer, folder, files.token)
    (folder / "config.json").write_text(json.dumps(files.config, indent=1) + "\n")
    for name, reference in files.tokenizers.items():
        (folder / name).mkdir()
        save_tokenizer(reference, folder / name)
    for name, text in files.texts.items():
        (folder / name).write_text(text)
    if files.chat is not None:
        (folder / "chat_template.jinja").write_text(
            files.chat("" if writes_bos else load_tokenizer(tokenizer).bos or "")
        )


def write_output(output: Output, folder: Path, memory: float | None) -> list[str]:
    """Write the files of an export to a new folder and compare them with the run. Return what was done and proved.

    Args:
        memory: see `export_to`.
    Raises:
        UserError: a tensor, or a logit of transformers, differs.
    """
    from lit_mm.weights.provenance import elements_of

    output.copy(folder)
    value = output.values()
    files = write_shards(folder, output.tensors, lambda name: elements_of(value(name)))
    check_files(folder, files, output)
    size = sum(stored.bytes for stored in output.tensors.values())
    return [
        f"{output.layout}: {len(output.tensors)} tensors, {size / 1e6:,.1f} MB",
        "read again: every tensor is the run's, in the dtype of the published file",
        *([proof_of(output, folder, memory)] if output.is_hf and is_whole(output) else []),
    ]


def write_shards(folder: Path, tensors: dict[str, Stored], elements: Any) -> list[Path]:
    """Write tensors to safetensors files of at most `SHARD` bytes, with an index if there are several."""
    from lit_mm.weights.stream import write

    shards: list[dict[str, Stored]] = [{}]
    for name, stored in tensors.items():
        if shards[-1] and sum(other.bytes for other in shards[-1].values()) + stored.bytes > SHARD:
            shards.append({})
        shards[-1][name] = stored
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        several = len(shards) > 1
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if several else "model.safetensors"
        write(folder / file, shard, elements, {"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        size = sum(stored.bytes for stored in tensors.values())
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    return [folder / name for name in dict.fromkeys(weight_map.values())]


def check_files(folder: Path, files: list[Path], output: Output) -> None:
    """Read exported files through the key map and compare every tensor with the run's.

    Raises:
        UserError: a tensor differs.
    """
    import torch

    from lit_mm.weights.files import TensorFiles

    exported = TensorFiles(files)

    def read(name: str) -> Tensor:
        return exported[name][: output.plan.sources[name].shape[0]] if name in output.rows else exported[name]

    for group in output.plan.groups:
        if any(":" in name for name in group.sources):
            continue
        for name, tensor in output.plan.compute(group, read).items():
            if not torch.equal(tensor, output.weights.weight(name).to(tensor.dtype)):
                path = output.weights.checkpoint.path
                raise UserError(f"{str(folder)!r}: {name!r} is not that of {str(path)!r} when read again")


def is_whole(output: Output) -> bool:
    """Return True if the files hold every part that the layout needs; only then can transformers' model be compared."""
    from lit_mm.checkpoints.contents import kept_tensors

    groups = [group for group in output.plan.groups if not any(":" in name for name in group.sources)]
    in_files = {name for group in groups for name in group.targets}
    return all(name in in_files or output.absent(name) for name, _ in kept_tensors(output.weights.module))


def proof_of(output: Output, folder: Path, memory: float | None) -> str:
    """Compare the run with transformers' model of the exported files. Return the words of the proof.

    Raises:
        UserError: see `lit_mm.commands.proof.prove`.
    """
    from lit_mm.commands.proof import prove, summary
    from lit_mm.commands.published import Published
    from lit_mm.weights.provenance import TYPES

    published = Published.open(str(folder), {}, output.layout)
    tables = {group.targets[0]: output.rows.get(group.sources[0]) for group in output.plan.groups if group.renames}

    def weight(name: str) -> Tensor:
        value = output.weights.weight(name).to(TYPES[output.plan.targets[name].dtype])
        return with_rows(value, tables.get(name))

    return summary(prove(published, weight, memory, whole=False))
