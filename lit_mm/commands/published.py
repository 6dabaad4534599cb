"""A published checkpoint beside the model that it becomes: what `import` and `export` share."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from lit_mm.checkpoints.contents import kept_tensors
from lit_mm.commands.recipe import RecipeCLI, quiet
from lit_mm.errors import UserError
from lit_mm.module import MultimodalModule
from lit_mm.weights.convert import AdaptsState, shorten
from lit_mm.weights.files import TensorFiles, read_json, tensor_files
from lit_mm.weights.layouts.layout import Config, Described, Layout, layout_of
from lit_mm.weights.names import add_prefix, below
from lit_mm.weights.provenance import Plan, plan
from lit_mm.weights.source import MAPS, local_place
from lit_mm.weights.stream import Stored

PEFT = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")
WRAPPER = "base_model.model."  # in front of every name that peft writes
DATA = {"class_path": "lit_mm.datamodules.Conversations", "init_args": {"path": "my_data.json", "format": "llava"}}


def described(place: Path, parts: Mapping[str, Described] | None = None) -> tuple[Described, TensorFiles]:
    """Open a place and describe its files."""
    files = TensorFiles(tensor_files(place))
    folder = place if place.is_dir() else place.parent
    return Described(folder, read_json(place, "config.json"), files.stored, parts or {}), files


@dataclass(frozen=True)
class Published:
    """A published checkpoint with the model of its recipe, on the meta device.

    Attributes:
        place: file or folder of the checkpoint.
        layout: its layout.
        recipe: recipe of the model.
        module: model without weights.
        config: resolved recipe, YAML.
        plan: groups of tensors of the files and of the model. Names of parts that came from another place start with
            "<part>:".
        files: tensors of the checkpoint, and of each part that came from another place.
        adapter: adapter_config.json of a LoRA; {} for other checkpoints.
    """

    place: Path
    layout: Layout
    recipe: Config
    module: MultimodalModule
    config: str
    plan: Plan
    files: Mapping[str, TensorFiles]
    adapter: Config

    def read(self, name: str) -> Tensor:
        """Read one tensor of the files by its name in the plan."""
        part, colon, rest = name.partition(":")
        return self.files[part if colon else ""][rest if colon else name]

    @classmethod
    def open(cls, place: str, parts: Mapping[str, str], layout_name: str | None = None) -> Published:
        """Open a published checkpoint and check that it fills its model completely.

        Args:
            place: file, folder or published name.
            parts: part -> place of the checkpoint of a part that `place` lacks.
            layout_name: name of the layout; None recognises it.
        Raises:
            UserError: the files cannot be read, their layout is unknown, a part is missing, or names or shapes differ.
        """
        opened = {part: described(local_place(where)) for part, where in parts.items()}
        path = local_place(place)
        main, main_files = described(path, {part: one for part, (one, _) in opened.items()})
        adapter = main.json("adapter_config.json") if any(PEFT.fullmatch(name) for name in main_files) else {}
        names = {plain_name(name): stored for name, stored in main_files.stored.items()}
        main = Described(main.folder, main.config, names, main.parts)
        layout = layout_of(main, layout_name)
        check_separate(layout, main, parts)
        recipe = recipe_of(layout.model(main), layout.stage)
        module, config = build(recipe)
        files = {"": main_files} | {part: tensors for part, (_, tensors) in opened.items()}
        sources = dict(main_files.stored)
        for part, (_, tensors) in opened.items():
            sources |= {f"{part}:{name}": stored for name, stored in tensors.stored.items()}
        rename = rename_of(layout, recipe["model"], module, list(parts), adapter)
        opened_plan = plan(sources, rename)
        check_complete(layout, main, module, opened_plan.targets)
        return cls(path, layout, recipe, module, config, opened_plan, files, adapter)


def plain_name(name: str) -> str:
    """Remove the prefix that peft puts in front of names."""
    return name.removeprefix(WRAPPER)


def rename_of(
    layout: Layout, model: Config, module: MultimodalModule, parts: list[str], adapter: Config
) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Build the key map of a checkpoint with parts from other places.

    LoRA is merged: W + alpha / rank B A, computed in fp32.
    """
    children = module.modules_by_part()
    adapting = [(f"{prefix}.", part) for prefix, part in module.named_modules() if isinstance(part, AdaptsState)]

    def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
        main = {plain_name(name): tensor for name, tensor in state.items() if ":" not in name}
        mapped: dict[str, Tensor] = {}
        for part in parts:
            kind, _ = layout.separate[part]
            tensors = below(state, f"{part}:")
            if part == "language" and adapter:
                tensors = merged(tensors, state, float(adapter["lora_alpha"]) / float(adapter["r"]))
            mapped |= add_prefix(MAPS[kind](tensors, children[part]), f"network.{part}")
        if adapter:
            main = {name: tensor for name, tensor in main.items() if ".lora_" not in name}
        mapped |= layout.rename(main, model)
        for prefix, part in adapting:
            part.adapt_state(mapped, prefix)
        return mapped

    return rename


def merged(base: Mapping[str, Tensor], adapter: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Add the products of a LoRA of peft to the weights of a language model.

    Raises:
        UserError: the adapter changes a linear that the language model does not have.
    """
    branches: dict[str, dict[str, Tensor]] = {}
    for name, tensor in adapter.items():
        if match := PEFT.fullmatch(name):
            branches.setdefault(f"{match[1]}.weight", {})[match[2]] = tensor
    if unknown := sorted(branches.keys() - base.keys()):
        raise UserError(f"the LoRA changes {shorten(unknown)}, which the language model does not have")
    state = dict(base)
    for name, pair in branches.items():
        delta = scale * (pair["B"].float() @ pair["A"].float())
        state[name] = (base[name].float() + delta).to(base[name].dtype)
    return state


def recipe_of(model: Config, train: Config) -> Config:
    """Build a whole recipe around a `model` section: one fine-tuning stage on conversations of the user's own."""
    stage = {
        "name": "finetune",
        "train": train,
        "epochs": 1,
        "schedule": {"class_path": "lit_mm.stages.Cosine", "init_args": {"warmup": 0.03}},
        "betas": [0.9, 0.999],
    }
    data = {**DATA, "init_args": DATA["init_args"] | {"global_batch": 16, "micro_batch": 1, "too_long": "truncate"}}
    trainer = {"accelerator": "auto", "devices": 1, "precision": "auto"}
    return {"model": model, "stages": [stage], "data": data, "trainer": trainer, "seed_everything": 0}


def build(recipe: Config) -> tuple[MultimodalModule, str]:
    """Build the model of a recipe on the meta device; return it with the resolved recipe."""
    quiet()
    with tempfile.TemporaryDirectory() as folder, torch.device("meta"):
        file = Path(folder) / "recipe.yaml"
        file.write_text(yaml.safe_dump(recipe, sort_keys=False))
        cli = RecipeCLI(["--config", str(file)], "import")
    return cli.model, cli.resolved()


def check_separate(layout: Layout, main: Described, parts: Mapping[str, str]) -> None:
    """Refuse `--with` for a part that no layout takes from elsewhere.

    Raises:
        UserError: a part cannot come from another place.
    """
    if unknown := sorted(parts.keys() - layout.separate.keys()):
        possible = ", ".join(sorted(layout.separate)) or "none: its checkpoints are whole"
        raise UserError(f"--with {unknown[0]}=...: the parts of {layout.name} from another place are {possible}")


def check_complete(layout: Layout, main: Described, module: MultimodalModule, targets: Mapping[str, Stored]) -> None:
    """Refuse a checkpoint that does not fill its model, or has tensors that the model does not have.

    Raises:
        UserError: a whole part is missing, or names or shapes differ.
    """
    tensors = dict(kept_tensors(module))
    missing = sorted(tensors.keys() - targets.keys())
    by_part: dict[str, list[str]] = {}
    for name in missing:
        by_part.setdefault(name.split(".")[1], []).append(name)
    for part, names in by_part.items():
        whole = sum(name.split(".")[1] == part for name in tensors)
        if part in layout.separate and len(names) == whole:
            published = main.config.get(layout.separate[part][1]) or "the one that it was trained with"
            raise UserError(
                f"{str(main.folder)!r} has no weights of the part {part!r}; {published} belongs there. Add --with "
                f"{part}={published}, or a folder or file of it"
            )
    problems = []
    if missing:
        problems.append(f"{len(missing)} tensors of the model are not in the checkpoint: {shorten(missing)}")
    if unknown := sorted(targets.keys() - tensors.keys()):
        problems.append(f"{len(unknown)} tensors of the checkpoint are not in the model: {shorten(unknown)}")
    shapes = [
        f"{name}: expected {tuple(tensor.shape)}, got {targets[name].shape}"
        for name, tensor in tensors.items()
        if name in targets and targets[name].shape != tuple(tensor.shape)
    ]
    if shapes:
        problems.append(f"{len(shapes)} shapes differ: {shorten(shapes)}")
    if problems:
        raise UserError(
            f"{str(main.folder)!r} as {layout.name}: " + "; ".join(problems) + ". Does config.json fit the weights?"
        )


def as_record(published: Published) -> dict[str, Any]:
    """Describe the published files for `published.json` of the run: what an export must write again."""
    return {
        "layout": published.layout.name,
        "place": str(published.place.absolute()),
        "adapter": published.adapter,
        "parts": [part for part in published.files if part],
        "tensors": {name: [stored.dtype, list(stored.shape)] for name, stored in published.plan.sources.items()},
        "unused": list(published.plan.unused),
    }
