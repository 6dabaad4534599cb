"""`export`: write the weights of a run in the layout of the published checkpoint that it came from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_mm.commands.import_ import copy_configs
from lit_mm.commands.options import Arguments
from lit_mm.errors import UserError

if TYPE_CHECKING:
    from lit_mm.checkpoints.reading import Checkpoint
    from lit_mm.weights.provenance import Group, Plan
    from lit_mm.weights.stream import Stored

EPILOG = """examples:
  python -m lit_mm export runs/tuned --to exported --format hf
  python -m lit_mm export runs/tuned --to exported --format authors"""
FORMATS = ("hf", "authors")
SHARD = 5_000_000_000  # most bytes of tensors in one file


def export(arguments: Sequence[str]) -> None:
    """Write the weights of a run in the layout of the published checkpoint that it, or the run it started from, was
    imported from: hf for checkpoints of transformers, authors for those of the authors. Names, shapes and dtypes are
    those of the published files, with its configs and tokenizer. The files are read again and compared at the end."""
    parser = Arguments(prog="python -m lit_mm export", description=export.__doc__, epilog=EPILOG)
    parser.add_argument("run", help="run folder or checkpoint")
    parser.add_argument("--to", required=True, metavar="DIR", help="new folder")
    parser.add_argument("--format", required=True, choices=FORMATS, help="layout of the files")
    parser.add_argument("--stage", help="export the end of this stage (default: the run's newest checkpoint)")
    choices = parser.parse_args(arguments)
    target = Path(choices.to)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--to {str(target)!r} is there already and not empty. Give a new folder")
    export_to(choices.run, target, choices.format, choices.stage)


def imported_run(run: Path) -> Path:
    """Follow the starts of a run back to the run that `import` made.

    Raises:
        UserError: the run did not start from an imported checkpoint, or that one is gone.
    """
    place = run
    while not (place / "published.json").is_file():
        start = place / "init_from.json"
        if not start.is_file():
            raise UserError(
                f"{str(run)!r} does not come from a published checkpoint, so nothing says which names and dtypes to "
                "write. Start it from one: `import` makes a run, and `fit --init_from` starts there"
            )
        place = Path(json.loads(start.read_text())["checkpoint"]).parents[1]
        if not place.is_dir():
            raise UserError(f"{str(run)!r} started from {str(place)!r}, which is not there any more. Put it back")
    return place


def export_to(run: str, target: Path, file_format: str, stage: str | None = None) -> None:
    """Export a checkpoint to a new folder, and print what was done.

    Args:
        run: run folder or checkpoint.
        target: new folder.
        file_format: "hf" or "authors".
        stage: name of a stage, to export its end; None means the newest checkpoint.
    Raises:
        UserError: the run was imported from the other layout, a part was trained that the layout does not hold, or the
            files differ from the weights when they are read again.
    """
    from lit_mm.checkpoints import manifest, reading
    from lit_mm.weights.provenance import elements_of
    from lit_mm.weights.stream import Stored

    checkpoint = reading.read(manifest.find(run, stage))
    folder = checkpoint.path.parents[1]
    source = imported_run(folder)
    record = json.loads((source / "published.json").read_text())
    if not record["layout"].endswith(f"/{file_format}"):
        raise UserError(
            f"{str(source)!r} was imported from {record['place']!r} in the layout {record['layout']}, and is exported "
            f"to that layout alone: --format {record['layout'].partition('/')[2]}"
        )
    stored = {name: Stored(dtype, tuple(shape)) for name, (dtype, shape) in record["tensors"].items()}
    copies = record.get("copies", {})
    plan = plan_of(record, {name: of for name, of in stored.items() if name not in copies}, checkpoint)
    check_parts(plan, checkpoint, source)
    names = [name for name in stored if ":" not in name]
    group_of = {name: group for group in plan.groups for name in group.sources}
    unused = reading_unused(source)
    waiting: dict[str, Any] = {}

    def elements(name: str) -> Any:
        name = copies.get(name, name)
        if name in record["unused"]:
            return elements_of(unused.get_tensor(name))
        if name not in waiting:
            waiting.update(plan.invert(group_of[name], values_of(checkpoint, group_of[name])))
        return elements_of(waiting.pop(name))

    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    copy_configs(source / "published", part)
    files = write_shards(part, {name: stored[name] for name in names}, elements)
    check_files(part, files, plan, checkpoint)
    if target.is_dir():
        target.rmdir()
    part.rename(target)
    size = sum(stored[name].bytes for name in names)
    print(f"{target}: {record['layout']}, {len(names)} tensors, {size / 1e6:,.1f} MB, from {checkpoint.path}")
    print("read again: every tensor is the run's, in the dtype of the published file")


def plan_of(record: dict[str, Any], stored: dict[str, Stored], checkpoint: Checkpoint) -> Plan:
    """Build the plan by which the published files became the model."""
    import torch
    import yaml

    from lit_mm.checkpoints.before import translate_config
    from lit_mm.commands.published import rename_of
    from lit_mm.commands.recipe import RecipeCLI, quiet
    from lit_mm.weights.layouts.layout import all_layouts
    from lit_mm.weights.provenance import plan

    quiet()
    config = translate_config(yaml.safe_load(checkpoint.config))
    label = f"the config in {str(checkpoint.path)!r}"
    with torch.device("meta"):
        module = RecipeCLI(config, "export", label, with_data=False).model
    layouts = {layout.name: layout for layout in all_layouts()}
    rename = rename_of(layouts[record["layout"]], config["model"], module, record["parts"], record["adapter"])
    return plan(stored, rename)


def values_of(checkpoint: Checkpoint, group: Group) -> dict[str, Any]:
    """Read the tensors of the model that a group has."""
    return {name: checkpoint.weight(name) for name in group.targets}


def reading_unused(source: Path) -> Any:
    """Open the published tensors that the model does not read."""
    from safetensors import safe_open

    return safe_open(source / "published.safetensors", framework="pt")


def check_parts(plan: Plan, checkpoint: Checkpoint, source: Path) -> None:
    """Refuse to lose what a run has trained in a part that the published files do not hold.

    Raises:
        UserError: a tensor of such a part is not the imported one any more.
    """
    import torch

    from lit_mm.checkpoints import manifest, reading

    imported = reading.read(manifest.find(source))
    for group in plan.groups:
        if not all(":" in name for name in group.sources):
            continue
        for name in group.targets:
            value, start = checkpoint.weight(name), imported.weight(name)
            if not torch.equal(value.to(start.dtype), start):
                part = group.sources[0].partition(":")[0]
                raise UserError(
                    f"{str(checkpoint.path)!r} has trained the part {part!r} ({name!r} differs from the imported one), "
                    "and the published files do not hold this part. Train it from a checkpoint that holds it"
                )


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


def check_files(folder: Path, files: list[Path], plan: Plan, checkpoint: Checkpoint) -> None:
    """Read exported files through the key map and compare every tensor with the run's.

    Raises:
        UserError: a tensor differs.
    """
    import torch

    from lit_mm.weights.files import TensorFiles

    exported = TensorFiles(files)
    for group in plan.groups:
        if any(":" in name for name in group.sources):
            continue
        for name, tensor in plan.compute(group, exported.__getitem__).items():
            if not torch.equal(tensor, checkpoint.weight(name).to(tensor.dtype)):
                raise UserError(f"{str(folder)!r}: {name!r} is not that of {str(checkpoint.path)!r} when read again")
