"""Writing the files of an export, reading them again, and the proof beside transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_mm.checkpoints import manifest, reading
from lit_mm.checkpoints.contents import kept_tensors
from lit_mm.commands.export_output import Output, with_rows
from lit_mm.commands.proof import SIZES, prove, summary
from lit_mm.commands.published import Published
from lit_mm.errors import UserError
from lit_mm.module import MultimodalModule
from lit_mm.weights.convert import shorten
from lit_mm.weights.files import TensorFiles
from lit_mm.weights.provenance import TYPES, elements_of
from lit_mm.weights.stream import Stored, write

SHARD = 5_000_000_000  # most bytes of tensors in one file


def write_output(output: Output, folder: Path, memory: float | None) -> list[str]:
    """Write the files of an export to a new folder and compare them with the run. Return what was done and proved.

    Args:
        memory: see `export_to`.
    Raises:
        UserError: a tensor, or a logit of transformers, differs.
    """
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


def check_parts(output: Output, source: Path | None) -> list[str]:
    """Refuse to lose what a run has trained in a part that the files do not hold. Return a line about tensors that the
    layout never holds, if the run has trained some, or was imported from a layout that may hold them.

    Args:
        output: export.
        source: run that `import` made; None for a run that was not imported.
    Raises:
        UserError: a tensor of such a part is neither the published nor the imported one.
    """
    groups = [group for group in output.plan.groups if not all(":" in name for name in group.sources)]
    in_files = {name for group in groups for name in group.targets}
    imported = None if source is None else reading.read(manifest.find(source))
    left_out: set[str] = set()
    for name, _ in kept_tensors(output.weights.module):
        if name in in_files:
            continue
        if output.is_other and output.absent(name):
            left_out.add(part_of(output.weights.module, name))
            continue
        if output.weights.is_frozen(name) and name not in output.weights.adapter_of:
            continue
        start = None
        if imported is not None and name in imported.manifest["weights"]:
            start = imported.weight(name)
        value = output.weights.weight(name)
        if start is None or not torch.equal(value, start.to(value.dtype)):
            if output.absent(name):
                left_out.add(part_of(output.weights.module, name))
                continue
            path, part = output.weights.checkpoint.path, name.split(".")[1]
            raise UserError(
                f"{str(path)!r} has trained the part {part!r} ({name!r} differs from the published one), and the files "
                f"of {output.layout} do not hold this part. Export to a layout that holds it"
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
    groups = [group for group in output.plan.groups if not any(":" in name for name in group.sources)]
    in_files = {name for group in groups for name in group.targets}
    return all(name in in_files or output.absent(name) for name, _ in kept_tensors(output.weights.module))


def proof_of(output: Output, folder: Path, memory: float | None) -> str:
    """Compare the run with transformers' model of the exported files. Return the words of the proof.

    Raises:
        UserError: see `lit_mm.commands.proof.prove`.
    """
    published = Published.open(str(folder), {}, output.layout)
    if output.is_other:
        check_inputs(output, published.module)
    tables = {group.targets[0]: output.rows.get(group.sources[0]) for group in output.plan.groups if group.renames}

    def weight(name: str) -> Tensor:
        value = output.weights.weight(name).to(TYPES[output.plan.targets[name].dtype])
        return with_rows(value, tables.get(name))

    return summary(prove(published, weight, memory, whole=False))


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
