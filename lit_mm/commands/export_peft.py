"""`export --format peft`: the adapter of a run in peft's own files, beside the published checkpoint that it adapts."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from lit_mm.checkpoints import manifest, reading
from lit_mm.checkpoints.contents import kept_tensors
from lit_mm.checkpoints.origins import is_published
from lit_mm.commands.export_numbers import differences
from lit_mm.commands.proof import QUESTION, TOLERANCE, Comparison, class_of, counts, summary
from lit_mm.commands.published import WRAPPER, Published, rename_of
from lit_mm.commands.run_weights import Origin, RunWeights
from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError, first_line
from lit_mm.layers.adapters import NAME
from lit_mm.samples.collate import collate
from lit_mm.stages.adapter import Adapter
from lit_mm.weights.config_file import is_published_name, split_revision
from lit_mm.weights.convert import load_strict
from lit_mm.weights.layouts.layout import all_layouts
from lit_mm.weights.names import add_prefix
from lit_mm.weights.provenance import Group, Rename, elements_of, plan
from lit_mm.weights.source import MAPS, local_place, places_of
from lit_mm.weights.stream import Stored, write

LANGUAGE = "language"  # part that an adapter of a recipe's run stands on
BASES = ("llama", "transformers")  # key maps of language models whose files transformers opens
TRAINED = "modules_to_save"  # key of adapter_config.json for layers that are trained whole
MAGNITUDE = "lora_magnitude_vector"


def write_adapter(
    weights: RunWeights, model: Mapping[str, Any], source: Path | None, folder: Path, memory: float | None
) -> list[str]:
    """Write adapter_config.json and adapter_model.safetensors to a new folder. Return what was done and proved.

    The adapter stands on the published checkpoint that the run was imported from, or, for a run that was not imported,
    on the published weights of its language model. Layers that were trained whole are kept beside the branches, as peft
    does by `modules_to_save`.

    Args:
        weights: weights of the run.
        model: section `model` of the recipe.
        source: run that `import` made; None for a run that was not imported.
        folder: the new folder.
        memory: gigabytes that the proof may take; None for those that are free now.
    Raises:
        UserError: the run has no adapter, does not start from weights that transformers opens, or has trained what peft
            cannot hold.
    """
    if not weights.adapters:
        raise UserError(
            f"{str(weights.checkpoint.path)!r} has no adapter of peft. A stage with `adapter` in its `train` "
            "trains one, and it exists until it is merged. peft cannot express branches that act on some "
            "positions only, such as partial LoRA. Export the whole model: --format hf or authors"
        )
    if source is None:
        return write_language_adapter(weights, folder, memory)
    record = json.loads((source / "published.json").read_text())
    layouts = {layout.name: layout for layout in all_layouts()}
    if not layouts[record["layout"]].in_transformers:
        raise UserError(
            "an adapter of peft stands on a checkpoint that transformers opens, and this run was imported from "
            f"{record['layout']}. Export it merged: --format hf"
        )
    place = Path(record["place"])
    base = place.parent if place.is_file() else place
    if not base.is_dir():
        raise UserError(f"the adapter belongs to {str(base)!r}, which no longer exists. Restore it")
    modules = modules_of(base)
    layout = layouts[record["layout"]]
    groups = groups_of(modules, rename_of(layout, dict(model), weights.module, [], {}))
    imported = reading.read(manifest.find(source))
    trained = trained_whole(
        weights,
        {target: group for group in groups for target in group.targets},
        imported.weight,
        lambda name: layout.start(name) is not None,
    )
    line = write_files(folder, weights, modules, groups, trained, str(base.absolute()), None)
    opened = Published.open(str(base), {}, record["layout"])
    lines = differences(weights.module.network, opened.module.network, record["layout"])
    comparison = Comparison(
        opened.layout, opened.folder, opened.files[""], weights.module, weights.weight, folder, lines
    )
    proof = counts(opened.layout, opened.plan) | comparison.figures(memory, whole=True)
    return [line, summary(proof)]


def base_keys(base: str) -> dict[str, str | None]:
    """Return the keys of adapter_config.json that name a published model, possibly with a revision, or a folder."""
    name, revision = split_revision(base) if is_published_name(base) else (base, None)
    return {"base_model_name_or_path": name, "revision": revision}


def write_files(
    folder: Path,
    weights: RunWeights,
    modules: nn.Module,
    groups: Sequence[Group],
    trained: Mapping[str, Tensor],
    base: str,
    task: str | None,
) -> str:
    """Write adapter_config.json and adapter_model.safetensors to a new folder. Return a line that counts the layers.

    Args:
        folder: the new folder.
        weights: weights of the run.
        modules: transformers' model that the adapter stands on, without weights.
        groups: tensors of that model beside those of the run.
        trained: name of a tensor of transformers' model that was trained whole -> its value.
        base: published name or folder of the model that the adapter stands on.
        task: kind of model for peft, such as "CAUSAL_LM"; None for none of them.
    Raises:
        UserError: the run has trained what peft cannot hold.
    """
    settings = settings_of(weights)
    tensors = branches(weights, {target: group for group in groups for target in group.targets})
    targets = sorted({name.partition(".lora_")[0].removeprefix(WRAPPER) for name in tensors})
    owners = sorted({owner_of(name, modules) for name in trained})
    tensors |= {f"{WRAPPER}{name}": tensor for name, tensor in trained.items()}
    for owner in owners:  # peft keeps all tensors of such a layer
        for kind, _ in modules.get_submodule(owner).named_parameters():
            if f"{WRAPPER}{owner}.{kind}" not in tensors:
                tensors |= published(weights, f"{owner}.{kind}", groups)
    config = {
        "peft_type": "LORA",
        "task_type": task,
        **base_keys(base),
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
    layers = f"{len(targets)} linears and {len(owners)} whole layers"
    return f"peft: branches of rank {settings.rank} on {layers}, for {base}"


def write_language_adapter(weights: RunWeights, folder: Path, memory: float | None) -> list[str]:
    """Write the adapter on the language model of a run that was not imported, see `write_adapter`.

    Raises:
        UserError: another part has an adapter, the language model has no published weights that transformers opens, or
            the adapter gives other logits in peft than in the run.
    """
    if others := sorted(weights.adapters.keys() - {LANGUAGE}):
        raise UserError(
            f"the adapter on {', '.join(others)} is not on the language model, and a run of a recipe has no "
            "other model that transformers can open. Export it merged: --format hf"
        )
    part = weights.module.network.language
    reference = part.weights if is_published(part) and part.weights else ""
    kind, _, joined = reference.partition(":")
    (place, *_) = places_of(joined) if joined else ("",)
    if kind not in BASES or not (Path(place).is_dir() or is_published_name(place)):
        raise UserError(
            "an adapter of peft stands on a language model with a published name or a folder, and `weights` of the "
            f"run's is {reference or None!r}; expected {' or '.join(f'{name}:PLACE' for name in BASES)}. Export the "
            "run merged: --format hf"
        )
    base = str(Path(place).absolute()) if Path(place).is_dir() else place
    try:
        config = AutoConfig.from_pretrained(local_place(place), trust_remote_code=False)
        with torch.device("meta"):
            modules = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"transformers cannot open {place!r} ({first_line(error)}). Export the run merged: --format hf"
        ) from error
    prefix = f"network.{LANGUAGE}."
    groups = groups_of(modules, lambda state: add_prefix(MAPS[kind](state, part), prefix.removesuffix(".")))
    origin = Origin(reference, part)

    def start(name: str) -> Tensor | None:
        """Read a tensor that the run stores; one by digest alone is compared with the digest when it is read."""
        return None if weights.is_frozen(name) else origin.weight(name.removeprefix(prefix))

    names = [name for name, _ in kept_tensors(weights.module)]
    group_of = {target: group for group in groups for target in group.targets}
    beside = [name for name in names if name.startswith(prefix) and name not in group_of]
    if trained_beside := [name for name in beside if not weights.is_frozen(name)]:
        raise UserError(
            f"the run has trained {trained_beside[0]!r}, which is not a layer of {base}, so peft cannot hold "
            "it. Export the whole model: --format hf or authors"
        )
    trained = trained_whole(weights, group_of, start, lambda name: not name.startswith(prefix))
    line = write_files(folder, weights, modules, groups, trained, base, "CAUSAL_LM")
    others = {name.split(".")[1] for name in names if not name.startswith(prefix) and not weights.is_frozen(name)}
    lines = [f"left out, because {base} is a language model alone: {', '.join(sorted(others))}"] if others else []
    return [line, proof_of_language(weights, local_place(place), folder, memory), *lines]


def proof_of_language(weights: RunWeights, base: Path, folder: Path, memory: float | None) -> str:
    """Compare the logits of a text in the run's language model and in peft's. Return the words of the proof.

    Args:
        weights: weights of the run.
        base: folder of the published language model.
        folder: folder of the adapter.
        memory: see `write_adapter`.
    Raises:
        UserError: logits differ by more than 1e-4.
    """
    module, processor = weights.module, weights.module.processor
    tensors = dict(module.network.language.named_parameters())
    needed = 2 * 4 * sum(tensor.numel() for tensor in tensors.values()) / 1e9
    limit = psutil.virtual_memory().available / 1e9 if memory is None else memory
    if needed > limit:
        return (
            f"proof: none: the comparison needs {needed:.1f} GB of memory, and {limit:.1f} GB may be used "
            "(--proof_memory)"
        )
    language = copy.deepcopy(module.network.language)
    vars(language)["attention"] = "auto"  # the backend of a recipe may need another device
    load_strict(language, {name: weights.weight(f"network.{LANGUAGE}.{name}").float() for name in tensors})
    reference = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    reference = PeftModel.from_pretrained(reference, folder).eval()
    document = Document("proof", (Turn("user", (QUESTION,)), Turn("assistant", ("yes",))))
    try:
        sample = processor.sample(document)
    except UserError as error:  # a prompt that needs a picture
        return f"proof: none: {error}"
    batch = collate([sample], processor)
    every = replace(batch, supervised=torch.arange(batch.ids.shape[1]), labels=batch.ids[0], views=None)
    with torch.inference_mode():
        logits = language.eval().logits(language.learn(language.embed(every.ids), every).hidden)
        expected = reference(input_ids=every.ids).logits[0]
    difference = float((logits - expected).abs().max())
    if difference > TOLERANCE:
        raise UserError(
            f"the proof of {str(folder)!r} failed: logits of a text in peft on {str(base)!r} differ from the run's by "
            f"{difference:.1e} (at most {TOLERANCE})"
        )
    kind = type(reference.get_base_model()).__name__
    return f"proof: against peft on transformers' {kind}: logits of a text differ by {difference:.1e} at most"


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


def groups_of(modules: nn.Module, rename: Rename) -> tuple[Group, ...]:
    """Return the groups of tensors of transformers' model and of the run's."""
    stored = {name: Stored("float32", tuple(tensor.shape)) for name, tensor in modules.state_dict().items()}
    return plan(stored, rename).groups


def trained_whole(
    weights: RunWeights,
    group_of: Mapping[str, Group],
    start: Callable[[str], Tensor | None],
    is_absent: Callable[[str], bool],
) -> dict[str, Tensor]:
    """Return the tensors of transformers' model that the run has trained whole.

    Args:
        weights: weights of the run.
        group_of: name of a tensor of the run -> its group.
        start: function from the name of a tensor to the published value; None for one that was never trained.
        is_absent: function that returns True for a tensor that the published files never hold, such as momentum copies.
    Raises:
        UserError: a trained tensor is not one of transformers' model.
    """
    tensors: dict[str, Tensor] = {}
    for name, _ in kept_tensors(weights.module):
        group = group_of.get(name)
        if group is None and is_absent(name):
            continue
        before, value = start(name), weights.weight(name, merge=False)
        if before is None or torch.equal(value, before.to(value.dtype)):
            continue
        if group is None or not group.renames:
            sources = ", ".join(group.sources) if group is not None else "nothing"
            raise UserError(
                f"the run has trained all of {name!r}, which is {sources} in transformers. peft can hold only "
                "whole layers. Export the run merged: --format hf"
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
            f"the run has trained {name!r}, a parameter outside of any layer, which peft cannot hold. Export "
            "the run merged: --format hf"
        )
    return owner


def published(weights: RunWeights, name: str, groups: Sequence[Group]) -> dict[str, Tensor]:
    """Return a tensor of transformers' model, under peft's name, that the run has not changed."""
    group = next(group for group in groups if name in group.sources)
    return {f"{WRAPPER}{name}": weights.weight(group.targets[0], merge=False)}
