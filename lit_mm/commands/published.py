"""A published checkpoint beside the model that it becomes: what `import` and `export` share."""

from __future__ import annotations

import math
import os
import re
import tempfile
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from lit_mm.checkpoints.contents import kept_tensors
from lit_mm.commands.recipe import RecipeCLI, quiet
from lit_mm.errors import UserError
from lit_mm.module import MultimodalModule
from lit_mm.prompts.tokenizer import download
from lit_mm.weights.config_file import is_published_name
from lit_mm.weights.convert import AdaptsState, shorten
from lit_mm.weights.files import TensorFiles, check_names, read_json, tensor_files
from lit_mm.weights.layouts.chats import CHAT
from lit_mm.weights.layouts.layout import Config, Described, Layout, Start, layout_of
from lit_mm.weights.names import add_prefix, below
from lit_mm.weights.provenance import TYPES, Plan, plan
from lit_mm.weights.source import MAPS, local_place
from lit_mm.weights.stream import Stored

PEFT = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")
SECTIONS = ("text_config", "vision_config", "qformer_config", "visual")  # keys of config.json with keys of their own
TOKENIZERS = ("tokenizer", "reading")  # of the language model, and of a second text; they have no tensors
WRAPPER = "base_model.model."  # in front of every name that peft writes
WRAPPERS = (WRAPPER, "module.", "_orig_mod.")  # of peft, DistributedDataParallel or DeepSpeed, and torch.compile
DATA = {"class_path": "lit_mm.datamodules.Conversations", "init_args": {"path": "my_data.json", "format": "llava"}}


def described(
    place: Path, parts: Mapping[str, Described] | None = None, template: str | None = None
) -> tuple[Described, TensorFiles]:
    """Open a place and describe its files.

    Raises:
        UserError: the files cannot be read, or hold no weights that can be imported.
    """
    files = TensorFiles(tensor_files(place), place if place.is_dir() else None)
    folder = place if place.is_dir() else place.parent
    config = read_json(place, "config.json")
    if wrong := [key for key in SECTIONS if not isinstance(config.get(key) or {}, dict)]:
        raise UserError(f"{str(folder / 'config.json')!r}: {wrong[0]} should be an object, got {config[wrong[0]]!r}")
    check_names(place, config, files.stored)
    return Described(folder, config, files.stored, parts or {}, template), files


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
        copies: name of a tensor of the files -> name of the tensor that it repeats. The plan has no copies.
        fresh: name of a tensor of the model that no file holds -> its start value, see `Layout.start`.
        main: description of the checkpoint.
    """

    place: Path
    layout: Layout
    recipe: Config
    module: MultimodalModule
    config: str
    plan: Plan
    files: Mapping[str, TensorFiles]
    adapter: Config
    copies: Mapping[str, str]
    fresh: Mapping[str, Start]
    main: Described

    @property
    def folder(self) -> Path:
        """Folder of the checkpoint's config.json and processor."""
        return self.place if self.place.is_dir() else self.place.parent

    @cached_property
    def fresh_stored(self) -> dict[str, Stored]:
        """Dtype and shape of the tensors of the model that no file holds, by name."""
        tensors = dict(kept_tensors(self.module))
        return {
            name: Stored(str(tensors[name].dtype).removeprefix("torch."), tuple(tensors[name].shape))
            for name in self.fresh
        }

    def start_value(self, name: str) -> Tensor:
        """Compute the start value of a tensor of the model that no file holds; draws depend on its name alone."""
        start, stored = self.fresh[name], self.fresh_stored[name]
        if isinstance(start, str):
            if start in self.fresh:
                return self.start_value(start)
            (group,) = (group for group in self.plan.groups if start in group.targets)
            return self.plan.compute(group, self.read)[start].to(TYPES[stored.dtype])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(name.encode()))
            return start(stored.shape).to(TYPES[stored.dtype])

    def read(self, name: str) -> Tensor:
        """Read one tensor of the files by its name in the plan."""
        part, colon, rest = name.partition(":")
        return self.files[part if colon else ""][rest if colon else name]

    @classmethod
    def open(
        cls, place: str, parts: Mapping[str, str], layout_name: str | None = None, template: str | None = None
    ) -> Published:
        """Open a published checkpoint and check that it fills its model completely.

        Args:
            place: file, folder or published name.
            parts: part -> place of the checkpoint of a part that `place` lacks.
            layout_name: name of the layout; None recognises it.
            template: name of the chat template; None: the files tell.
        Raises:
            UserError: the files cannot be read, their layout is unknown, a part is missing, or names or shapes differ.
        """
        opened = {part: described(local_place(where)) for part, where in parts.items() if part not in TOKENIZERS}
        others = {
            part: Described(tokenizer_folder(where), {}, {}) for part, where in parts.items() if part in TOKENIZERS
        }
        path = local_place(place)
        separate = {part: checkpoint for part, (checkpoint, _) in opened.items()} | others
        main, main_files = described(path, separate, template)
        adapter = adapter_of(main)
        names = {plain_name(name): stored for name, stored in main_files.stored.items()}
        main = replace(main, stored=names)
        layout = layout_of(main, layout_name)
        check_separate(layout, opened)
        recipe = recipe_of(model_of(layout, main), layout.stage, layout.objectives)
        prompt = recipe["model"]["init_args"]["inputs"].get("prompt")
        if template is not None and (prompt is None or prompt["class_path"] != CHAT):
            raise UserError(
                f"--template {template}: a checkpoint of {layout.name} has only one prompt. Leave --template out"
            )
        module, config = build(recipe)
        files = {"": main_files} | {part: tensors for part, (_, tensors) in opened.items()}
        name_of = {plain_name(name): name for name in main_files.stored}
        copies = {name_of[name]: name_of[original] for name, original in layout.copies(main).items()}
        check_copies(main, main_files, copies)
        sources = {name: stored for name, stored in main_files.stored.items() if name not in copies}
        for part, (_, tensors) in opened.items():
            sources |= {f"{part}:{name}": stored for name, stored in tensors.stored.items()}
        rename = rename_of(layout, recipe["model"], module, list(opened), adapter)
        opened_plan = plan(sources, rename)
        absent = [name for name, _ in kept_tensors(module) if name not in opened_plan.targets]
        fresh = {name: start for name in absent if (start := layout.start(name)) is not None}
        check_complete(layout, main, module, opened_plan.targets, fresh)
        return cls(path, layout, recipe, module, config, opened_plan, files, adapter, copies, fresh, main)


def model_of(layout: Layout, main: Described) -> Config:
    """Build the `model` section of a checkpoint.

    Raises:
        UserError: see `Layout.model`, or a key of its config.json or a tensor that every checkpoint of the layout has
            is absent.
    """
    try:
        return layout.model(main)
    except KeyError as error:
        raise UserError(
            f"{str(main.folder)!r} as {layout.name}: the key of config.json or tensor {error.args[0]!r} is "
            "missing. Is the checkpoint complete, and of this layout?"
        ) from error


def adapter_of(main: Described) -> Config:
    """Read the adapter_config.json of a LoRA of peft; {} for a checkpoint without one.

    Raises:
        UserError: a LoRA has no such file, or one that is not merged as W + scale B A.
    """
    if not any(PEFT.fullmatch(name) for name in main.stored):
        return {}
    adapter, file = main.json("adapter_config.json"), str(main.folder / "adapter_config.json")
    if missing := [key for key in ("r", "lora_alpha") if key not in adapter]:
        raise UserError(f"{file!r} is missing, or lacks {', '.join(missing)}, which scale the LoRA. Copy the file")
    if used := [key for key in ("use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out") if adapter.get(key)]:
        raise UserError(
            f"{file!r} sets {', '.join(used)}, but only a plain LoRA can be merged here. Merge it with "
            "merge_and_unload() of peft, and import the result"
        )
    rest = [name for name in main.stored if not PEFT.fullmatch(name)]
    if not rest:
        raise UserError(
            f"{str(main.folder)!r} holds a LoRA, but no connector. Copy non_lora_trainables.bin of the same "
            "training there"
        )
    return adapter


def lora_scale(adapter: Config) -> float:
    """Return the factor of B A in a merged LoRA: alpha / rank, or alpha / sqrt(rank) with `use_rslora`."""
    rank = float(adapter["r"])
    return float(adapter["lora_alpha"]) / (math.sqrt(rank) if adapter.get("use_rslora") else rank)


def tokenizer_folder(place: str) -> Path:
    """Return the folder of a tokenizer; of a published name only the files of the tokenizer are downloaded."""
    path = Path(os.path.expanduser(place))
    if not is_published_name(place):
        return path.parent if path.is_file() else path
    return download(place)


def plain_name(name: str) -> str:
    """Remove the prefixes that wrappers of a model put in front of names."""
    while wrapper := next((wrapper for wrapper in WRAPPERS if name.startswith(wrapper)), None):
        name = name.removeprefix(wrapper)
    return name


def rename_of(
    layout: Layout, model: Config, module: MultimodalModule, parts: list[str], adapter: Config
) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Build the key map of a checkpoint with parts from other places.

    LoRA is merged: W + alpha / rank B A, computed in fp32.
    """
    adapting = [(f"{prefix}.", part) for prefix, part in module.named_modules() if isinstance(part, AdaptsState)]

    def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
        main = {plain_name(name): tensor for name, tensor in state.items() if ":" not in name}
        mapped: dict[str, Tensor] = {}
        for part in parts:
            kind, _ = layout.separate[part]
            tensors = below(state, f"{part}:")
            if part == "language" and adapter:
                tensors = merged(tensors, state, lora_scale(adapter))
            place = layout.place(part)
            mapped |= add_prefix(MAPS[kind](tensors, module.get_submodule(place)), place)
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


def recipe_of(model: Config, train: Config, objectives: Config) -> Config:
    """Build a whole recipe around a `model` section: one fine-tuning stage on conversations of the user's own."""
    stage = {
        "name": "finetune",
        **({"objectives": objectives} if objectives else {}),
        "train": train,
        "epochs": 1,
        "schedule": {"class_path": "lit_mm.stages.Cosine", "init_args": {"warmup": 0.03}},
        "betas": [0.9, 0.999],
    }
    micro_batch = 16 if objectives else 1  # objectives that compare samples need the batch in one forward
    batch = {"global_batch": 16, "micro_batch": micro_batch, "too_long": "truncate"}
    data = {**DATA, "init_args": DATA["init_args"] | batch}
    trainer = {"accelerator": "auto", "devices": 1, "precision": "auto"}
    return {"model": model, "stages": [stage], "data": data, "trainer": trainer, "seed_everything": 0}


def build(recipe: Config) -> tuple[MultimodalModule, str]:
    """Build the model of a recipe on the meta device; return it with the resolved recipe.

    Raises:
        UserError: an argument is refused.
    """
    quiet()
    with tempfile.TemporaryDirectory() as folder, torch.device("meta"):
        file = Path(folder) / "recipe.yaml"
        file.write_text(yaml.safe_dump(recipe, sort_keys=False))
        try:
            cli = RecipeCLI(["--config", str(file)], "import")
        except UserError as error:
            reason = str(error).replace(f"{file}, ", "")
            raise UserError(f"the model that config.json describes cannot be built: {reason}") from error
    return cli.model, cli.resolved()


def check_separate(layout: Layout, parts: Collection[str]) -> None:
    """Refuse `--with` for a part that no layout takes from elsewhere.

    Raises:
        UserError: a part cannot come from another place.
    """
    if unknown := sorted(set(parts) - layout.separate.keys()):
        possible = ", ".join(sorted(layout.separate)) or "none: its checkpoints are whole"
        raise UserError(f"--with {unknown[0]}=...: {layout.name} takes these parts from elsewhere: {possible}")


def check_copies(main: Described, files: TensorFiles, copies: Mapping[str, str]) -> None:
    """Refuse a checkpoint in which a tensor that should repeat another one differs from it.

    Raises:
        UserError: two such tensors have different values.
    """
    for name, original in copies.items():
        if not torch.equal(files[name], files[original]):
            raise UserError(
                f"{str(main.folder)!r}: {name!r} should be a copy of {original!r}, but has other values. Does the "
                "file belong to a model that shares other tensors?"
            )


def check_complete(
    layout: Layout,
    main: Described,
    module: MultimodalModule,
    targets: Mapping[str, Stored],
    fresh: Collection[str],
) -> None:
    """Refuse a checkpoint that does not fill its model, or has tensors that the model does not have.

    Args:
        targets: dtype and shape of every tensor that the files fill, by name in the model.
        fresh: names of the tensors of the model that may be absent.
    Raises:
        UserError: a whole part is missing, or names or shapes differ.
    """
    tensors = dict(kept_tensors(module))
    missing = sorted(tensors.keys() - targets.keys() - set(fresh))
    for part in layout.separate:
        if (
            below(dict.fromkeys(missing), f"{layout.place(part)}.").keys()
            == below(tensors, f"{layout.place(part)}.").keys()
        ):
            published = main.config.get(layout.separate[part][1])
            raise UserError(
                f"{str(main.folder)!r} has no weights of the part {part!r}, which is "
                f"{published or 'that of its training'}. Add --with {part}={published or 'PLACE'}, or a folder or "
                "file of it"
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
    integers = [
        name
        for name, tensor in tensors.items()
        if name in targets and tensor.is_floating_point() and not TYPES[targets[name].dtype].is_floating_point
    ]
    if integers:
        problems.append(f"{len(integers)} weights are whole numbers, as of a quantised checkpoint: {shorten(integers)}")
    if shapes:
        problems.append(f"{len(shapes)} shapes differ: {shorten(shapes)}")
    if problems:
        raise UserError(
            f"{str(main.folder)!r} as {layout.name}: " + "; ".join(problems) + ". Does config.json fit the weights?"
        )


def as_record(published: Published) -> dict[str, Any]:
    """Describe the published files for `published.json` of the run: what an export must write again."""
    stored = published.files[""].stored
    tensors = {
        name: published.plan.sources.get(name) or stored[name] for name in (*published.plan.sources, *published.copies)
    }
    return {
        "layout": published.layout.name,
        "place": str(published.place.absolute()),
        "adapter": published.adapter,
        "parts": [part for part in published.files if part],
        "tensors": {name: [of.dtype, list(of.shape)] for name, of in tensors.items()},
        "copies": dict(published.copies),
        "unused": list(published.plan.unused),
    }
