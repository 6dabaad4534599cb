"""`export --format peft`: the adapter of a run in peft's own files, beside the published checkpoint that it adapts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_mm.checkpoints import manifest, reading
from lit_mm.checkpoints.contents import kept_tensors
from lit_mm.commands.proof import class_of, prove, summary
from lit_mm.commands.published import WRAPPER, Published, rename_of
from lit_mm.commands.run_weights import RunWeights
from lit_mm.errors import UserError
from lit_mm.layers.adapters import NAME
from lit_mm.stages.adapter import Adapter
from lit_mm.weights.layouts.layout import Layout, all_layouts
from lit_mm.weights.provenance import Group, elements_of, plan
from lit_mm.weights.stream import Stored, write

TRAINED = "modules_to_save"  # key of adapter_config.json for layers that are trained whole
MAGNITUDE = "lora_magnitude_vector"


def write_adapter(
    weights: RunWeights, model: Mapping[str, Any], source: Path | None, folder: Path, memory: float | None
) -> list[str]:
    """Write adapter_config.json and adapter_model.safetensors to a new folder. Return what was done and proved.

    The adapter stands on the published checkpoint that the run was imported from. Layers that were trained whole are
    kept beside the branches, as peft does by `modules_to_save`.

    Args:
        weights: weights of the run.
        model: section `model` of the recipe.
        source: run that `import` made; None for a run that was not imported.
        folder: the new folder.
        memory: gigabytes that the proof may take; None for those that are free now.
    Raises:
        UserError: the run has no adapter, does not start from a checkpoint that transformers opens, or has trained what
            peft cannot hold.
    """
    if not weights.adapters:
        raise UserError(
            f"{str(weights.checkpoint.path)!r} has no adapter of peft: a stage trains one by `adapter` in its `train`, "
            "and it is there until it is merged. Branches that are part of a model, such as partial LoRA, act on some "
            "positions alone, which peft cannot say. Export the whole model: --format hf"
        )
    record = None if source is None else json.loads((source / "published.json").read_text())
    layouts = {layout.name: layout for layout in all_layouts()}
    if source is None or record is None or not layouts[record["layout"]].in_transformers:
        raise UserError(
            "an adapter of peft stands on a checkpoint that transformers opens, and this run does not start from one. "
            "Export it merged: --format hf"
        )
    place = Path(record["place"])
    base = place.parent if place.is_file() else place
    if not base.is_dir():
        raise UserError(f"the adapter stands on {str(base)!r}, which is not there any more. Put it back")
    settings = settings_of(weights)
    modules = modules_of(base)
    stored = {name: Stored("float32", tuple(tensor.shape)) for name, tensor in modules.state_dict().items()}
    groups = plan(stored, rename_of(layouts[record["layout"]], dict(model), weights.module, [], {})).groups
    group_of = {target: group for group in groups for target in group.targets}
    tensors = branches(weights, group_of)
    targets = sorted({name.partition(".lora_")[0].removeprefix(WRAPPER) for name in tensors})
    trained = changed(weights, source, layouts[record["layout"]], group_of)
    owners = sorted({owner_of(name, modules) for name in trained})
    tensors |= {f"{WRAPPER}{name}": tensor for name, tensor in trained.items()}
    for owner in owners:  # peft keeps all tensors of such a layer
        for kind, _ in modules.get_submodule(owner).named_parameters():
            if f"{WRAPPER}{owner}.{kind}" not in tensors:
                tensors |= published(weights, f"{owner}.{kind}", groups)
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": str(base.absolute()),
        "inference_mode": True,
        "bias": "none",
        "r": settings.rank,
        "lora_alpha": settings.rank if settings.alpha is None else settings.alpha,
        "lora_dropout": settings.dropout,
        "use_rslora": settings.type == "rslora",
        "use_dora": settings.type == "dora",
        "target_modules": targets,
        TRAINED: owners or None,
    }
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")
    listed = {name: Stored(str(of.dtype).removeprefix("torch."), tuple(of.shape)) for name, of in tensors.items()}
    write(folder / "adapter_model.safetensors", listed, lambda name: elements_of(tensors[name]), {"format": "pt"})
    proof = prove(Published.open(str(base), {}, record["layout"]), weights.weight, memory, whole=True, adapter=folder)
    return [
        f"peft: branches of rank {settings.rank} on {len(targets)} linears and {len(owners)} whole layers, for {base}",
        summary(proof),
    ]


def settings_of(weights: RunWeights) -> Adapter:
    """Return the settings of the run's adapter.

    Raises:
        UserError: adapters of several settings, which one adapter_config.json cannot hold.
    """
    first, *others = weights.adapters.values()
    if not all(first.fits(other) for other in others):
        raise UserError(
            f"the adapters on {', '.join(sorted(weights.adapters))} have different settings, which one "
            "adapter_config.json cannot hold. Export the run merged: --format hf"
        )
    return first


def modules_of(base: Path) -> nn.Module:
    """Build transformers' model of a published checkpoint without weights."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(base)
    with torch.device("meta"):
        return class_of(config)(config)


def branches(weights: RunWeights, group_of: Mapping[str, Group]) -> dict[str, Tensor]:
    """Return the tensors of the adapter under peft's names for transformers' model.

    Raises:
        UserError: a linear with branches is another one in transformers.
    """
    tensors: dict[str, Tensor] = {}
    for name in weights.adapter_of:
        group = group_of.get(name)
        if group is None or not group.renames:
            raise UserError(
                f"the adapter is on {name.removesuffix('.weight')!r}, which is no single linear in transformers "
                f"({', '.join(group.sources) if group else 'not there'}), so peft cannot put it there. Export the run "
                "merged: --format hf"
            )
        owner = f"{WRAPPER}{group.sources[0].removesuffix('.weight')}"
        for piece, tensor in weights.branches(name).items():
            plain = piece.replace(f".{NAME}.", ".")
            if plain.startswith(MAGNITUDE):
                plain = MAGNITUDE
            tensors[f"{owner}.{plain}"] = tensor
    return tensors


def changed(weights: RunWeights, source: Path, layout: Layout, group_of: Mapping[str, Group]) -> dict[str, Tensor]:
    """Return the tensors of transformers' model that the run has trained whole. Tensors that the layout never holds,
    such as momentum copies, are left out.

    Raises:
        UserError: a trained tensor is not one of transformers' model.
    """
    imported = reading.read(manifest.find(source))
    tensors: dict[str, Tensor] = {}
    for name, _ in kept_tensors(weights.module):
        value, start = weights.weight(name, merge=False), imported.weight(name)
        if torch.equal(value, start.to(value.dtype)):
            continue
        group = group_of.get(name)
        if group is None and layout.start(name) is not None:
            continue
        if group is None or not group.renames:
            sources = ", ".join(group.sources) if group is not None else "nothing"
            raise UserError(
                f"the run has trained {name!r} whole, which transformers has as {sources}; peft keeps whole layers "
                "alone. Export the run merged: --format hf"
            )
        tensors[group.sources[0]] = value
    return tensors


def owner_of(name: str, modules: nn.Module) -> str:
    """Return the path of the layer that a tensor belongs to.

    Raises:
        UserError: it is a parameter of a module with layers inside, which peft cannot save alone.
    """
    owner = name.rpartition(".")[0]
    if any(modules.get_submodule(owner).children()):
        raise UserError(
            f"the run has trained {name!r}, a parameter of no layer of its own, which peft cannot keep. Export the run "
            "merged: --format hf"
        )
    return owner


def published(weights: RunWeights, name: str, groups: tuple[Group, ...]) -> dict[str, Tensor]:
    """Return a tensor of transformers' model, under peft's name, that the run has not changed."""
    group = next(group for group in groups if name in group.sources)
    return {f"{WRAPPER}{name}": weights.weight(group.targets[0], merge=False)}
