"""Writing the files of an export, reading them again, and the proof beside transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_mm.checkpoints import manifest, reading
from lit_mm.checkpoints.contents import kept_tensors
from lit_mm.commands.export_numbers import differences
from lit_mm.commands.export_output import Output
from lit_mm.commands.proof import SIZES, Comparison, counts, summary
from lit_mm.errors import UserError
from lit_mm.module import MultimodalModule
from lit_mm.run.interruption import say
from lit_mm.weights.convert import shorten
from lit_mm.weights.files import TensorFiles, tensor_files
from lit_mm.weights.layouts.layout import layout_named
from lit_mm.weights.provenance import TYPES, elements_of
from lit_mm.weights.stream import Stored, write

SHARD = 5_000_000_000  # most bytes of tensors in one file
LARGE = 1_000_000_000  # least bytes of an export whose size is said before it is written


def write_output(output: Output, folder: Path, memory: float | None) -> list[str]:
    """Write the files of an export to a new folder and compare them with the run. Return what was done and proved.

    Args:
        memory: see `export_to`.
    Raises:
        UserError: a tensor, or a logit of transformers, differs.
    """
    value, size = output.values(), sum(stored.bytes for stored in output.tensors.values())
    check_room(folder.parent, size)
    try:
        output.copy(folder)
        files = write_shards(folder, output.tensors, lambda name: elements_of(value(name)))
    except OSError as error:
        raise UserError(f"the files in {str(folder)!r} cannot be written ({error}). Is the disk full?") from error
    check_files(folder, files, output)
    return [
        f"{output.layout}: {len(output.tensors)} tensors, {size / 1e6:,.1f} MB",
        "read again: every tensor is the run's, in the dtype of the published file",
        *proof_of(output, folder, memory),
    ]


def check_room(folder: Path, size: int) -> None:
    """Say how much an export will write, if it takes long, and refuse one that the disk has no room for.

    Args:
        folder: folder in which the export is written.
        size: bytes of its tensors.
    Raises:
        UserError: there is less room.
    """
    room = shutil.disk_usage(folder).free
    if size > room:
        raise UserError(
            f"the files take {size / 1e9:.1f} GB, and {str(folder)!r} has room for {room / 1e9:.1f} GB. Make room, or "
            "choose another folder (a rehearsal writes where TMPDIR says)"
        )
    if size > LARGE:
        say(f"lit_mm: writing {size / 1e9:.1f} GB to {folder}")


def write_shards(folder: Path, tensors: dict[str, Stored], elements: Any) -> list[Path]:
    """Write tensors to safetensors files of at most `SHARD` bytes, with an index if there are several.

    A name with a slash stands for a tensor of a folder inside, see `lit_mm.weights.files.TensorFiles`.
    """
    by_folder: dict[str, dict[str, Stored]] = {}
    for name, stored in tensors.items():
        inner, slash, rest = name.rpartition("/")
        by_folder.setdefault(f"{inner}{slash}", {})[rest] = stored
    return [
        file
        for inner, part in by_folder.items()
        for file in write_folder(folder / inner, part, lambda name, inner=inner: elements(f"{inner}{name}"))
    ]


def write_folder(folder: Path, tensors: dict[str, Stored], elements: Any) -> list[Path]:
    """Write the tensors of one folder, see `write_shards`."""
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


def check_parts(
    output: Output, source: Path | None, missing: Path | None = None, equal: Collection[str] = ()
) -> list[str]:
    """Refuse to lose what a run has trained in a part that the files do not hold. Return a line about tensors that the
    layout never holds, if the run has trained some, or was imported from a layout that may hold them.

    Args:
        output: export.
        source: run that `import` made; None for a run that was not imported.
        missing: run that the weights started from and that is not there any more; None if nothing is missing.
        equal: parts whose published files were compared with the run and have its weights.
    Raises:
        UserError: a tensor of such a part is neither the published nor the imported one.
    """
    groups = [group for group in output.plan.groups if not all(":" in name for name in group.sources)]
    in_files = {name for group in groups for name in group.targets}
    imported: list[reading.Checkpoint] = []  # opened when a tensor has to be compared
    left_out: set[str] = set()
    for name, _ in kept_tensors(output.weights.module):
        if name in in_files or name.split(".")[1] in equal:
            continue
        if output.is_other and output.absent(name):
            left_out.add(part_of(output.weights.module, name))
            continue
        if output.weights.is_frozen(name) and name not in output.weights.adapter_of:
            continue
        if source is not None and not imported:
            imported.append(reading.read(manifest.find(source)))
        start = next((of.weight(name) for of in imported if name in of.manifest["weights"]), None)
        value = output.weights.weight(name)
        if start is not None and torch.equal(value, start.to(value.dtype)):
            continue
        if output.absent(name):
            left_out.add(part_of(output.weights.module, name))
            continue
        path, part = output.weights.checkpoint.path, name.split(".")[1]
        if missing is not None:
            raise UserError(
                f"files of {output.layout} cannot contain the part {part!r}, which {str(path)!r} may have "
                f"trained. The run {str(missing)!r} that it started from no longer exists, so this cannot be "
                f"checked. Add --with import=RUN, or the published files of the part, --with {part}=PLACE"
            )
        raise UserError(
            f"{str(path)!r} has trained the part {part!r} ({name!r} differs from the published one), but "
            f"files of {output.layout} cannot contain this part. Export to a layout that can"
        )
    return [f"left out, because {output.layout} has no place for it: {shorten(sorted(left_out))}"] if left_out else []


def part_of(module: MultimodalModule, name: str) -> str:
    """Return the part of a parameter, or the child of the network that holds a buffer."""
    inner = name.removeprefix("network.")
    owner, _, kind = name.rpartition(".")
    is_parameter = kind in dict(module.get_submodule(owner).named_parameters(recurse=False))
    return module.part_of(inner) if is_parameter else inner.partition(".")[0]


def check_files(folder: Path, files: list[Path], output: Output) -> None:
    """Read exported files through the key map and compare every tensor with the run's.

    Raises:
        UserError: a tensor differs.
    """
    exported = TensorFiles(files, folder)

    def read(name: str) -> Tensor:
        return exported[name][: output.plan.sources[name].shape[0]] if name in output.rows else exported[name]

    for group in output.plan.groups:
        if any(":" in name for name in group.sources):
            continue
        for name, tensor in output.plan.compute(group, read).items():
            if not torch.equal(tensor, output.weights.weight(name).to(tensor.dtype)):
                path = output.weights.checkpoint.path
                raise UserError(
                    f"{str(folder)!r}: {name!r} differs from {str(path)!r} after it was written and read again"
                )


def proof_of(output: Output, folder: Path, memory: float | None) -> list[str]:
    """Compare the run with the program that reads its files. Return the words of the proof.

    The numbers of the run, such as epsilons, are compared with those that the configs of the files describe; where
    transformers opens the files, its logits are compared with the run's, rounded to the dtypes of the files.

    Raises:
        UserError: a number differs that is no epsilon, or see `lit_mm.commands.proof.Comparison.figures`.
    """
    described, module = output.described(folder), output.weights.module
    if output.is_other:
        check_inputs(output, described)
    lines = differences(module.network, described.network, output.layout)
    layout = layout_named(output.layout)
    if not layout.in_transformers:
        return list(lines)

    def weight(name: str) -> Tensor:
        value = output.weights.weight(name)
        return value.to(TYPES[output.plan.targets[name].dtype]) if name in output.plan.targets else value

    comparison = Comparison(layout, folder, TensorFiles(tensor_files(folder)), module, weight, differences=lines)
    return [summary(counts(layout, output.plan) | comparison.figures(memory, whole=False))]


def check_inputs(output: Output, module: MultimodalModule) -> None:
    """Refuse an export whose processor makes other views of an image than the run's.

    Args:
        output: export.
        module: model of the exported files.
    Raises:
        UserError: sizes, pixel constants or visual tokens differ.
    """
    run, exported = output.weights.module.processor, module.processor
    for size in SIZES:
        facts = [
            (of.tiling(*size).views, of.visual_tokens(*size), of.normalise.mean, of.normalise.std, of.normalise.fill)
            for of in (run, exported)
        ]
        if facts[0] != facts[1]:
            raise UserError(
                f"the processor of {output.layout} makes other views of an image of {size[1]} x {size[0]} pixels than "
                f"the run: {facts[1]} instead of {facts[0]}. Set tiling, layout and fill of the model's `inputs` to "
                "those of the published family"
            )
