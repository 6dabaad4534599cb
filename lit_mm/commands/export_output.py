"""What an export writes: the tensors of a published layout, computed from the weights of a run."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from lit_mm.checkpoints.before import translate_config
from lit_mm.checkpoints.contents import kept_tensors
from lit_mm.checkpoints.origins import is_published
from lit_mm.commands.conversions.conversion import Files
from lit_mm.commands.export_start import with_tokenizers
from lit_mm.commands.import_ import copy_configs
from lit_mm.commands.published import build, recipe_of, rename_of
from lit_mm.commands.recipe import RecipeCLI
from lit_mm.commands.run_weights import Origin, RunWeights
from lit_mm.errors import UserError
from lit_mm.module import MultimodalModule
from lit_mm.prompts.save import save_tokenizer
from lit_mm.prompts.source import load_tokenizer
from lit_mm.weights.agreement import check_config
from lit_mm.weights.config_file import is_published_name
from lit_mm.weights.convert import shorten
from lit_mm.weights.files import TensorFiles, read_json, tensor_files
from lit_mm.weights.layouts.layout import Described, Layout, layout_named
from lit_mm.weights.provenance import TYPES, Plan, plan
from lit_mm.weights.source import MAPS, arguments_of, local_place, places_of
from lit_mm.weights.stream import Stored

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


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
        is_other: True if the run was not imported from this layout.
        copies: name of a tensor of the files -> name of the tensor that it repeats.
        absent: function that returns True for a tensor of the model that the layout never holds.
        described: function from the folder of the files to the model, without weights, that their configs describe.
    """

    layout: str
    plan: Plan
    weights: RunWeights
    outside: Callable[[str], Tensor]
    copy: Callable[[Path], None]
    described: Callable[[Path], MultimodalModule]
    rows: Mapping[str, int] = field(default_factory=dict)
    is_hf: bool = False
    is_other: bool = False
    copies: Mapping[str, str] = field(default_factory=dict)
    absent: Callable[[str], bool] = lambda name: False

    @property
    def tensors(self) -> dict[str, Stored]:
        """Return dtype and shape of every tensor of the files, by name; a part from another place is not among them."""
        tensors = {
            name: replace(stored, shape=(self.rows[name], *stored.shape[1:])) if name in self.rows else stored
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


def same_layout(source: Path, record: dict[str, Any], model: dict[str, Any], weights: RunWeights) -> Output:
    """Describe an export to the layout that a run was imported from.

    Args:
        source: run that `import` made.
        record: its `published.json`.
        model: section `model` of the recipe.
        weights: weights of the run.
    """
    layout = layout_named(record["layout"])
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
        lambda folder: imported_model(source),
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
    layout = layout_named(name)
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
            f"{layout.name} cannot hold this {type(weights.module).__name__}: {len(problems)} tensors exist "
            f"on one side only or have other shapes, such as {shorten(problems[:3])}. Layers that a recipe "
            "adds, such as partial LoRA, have no place in these files"
        )
    places = {target: find_outside(layout.name, target, files, published) for target in files.outside}
    return Output(
        layout.name,
        opened,
        weights,
        lambda target: places[target][0][places[target][1]].to(TYPES[files.tensors[target].dtype]),
        lambda folder: write_texts(folder, files, files.tokenizer or model["init_args"]["tokenizer"]),
        lambda folder: described_model(layout, folder, files),
        files.rows,
        layout.in_transformers,
        is_other=True,
        absent=lambda target: layout.start(target) is not None,
    )


def imported_model(source: Path) -> MultimodalModule:
    """Build the model of a run that `import` made, without weights."""
    recipe = with_tokenizers(translate_config(yaml.safe_load((source / "config.yaml").read_text())), source, {})
    with torch.device("meta"):
        return RecipeCLI(recipe, "export", f"the config of {str(source)!r}", with_data=False).model


def described_model(layout: Layout, folder: Path, files: Files) -> MultimodalModule:
    """Build the model that an import of exported files would have, without weights.

    Args:
        layout: layout of the files.
        folder: folder of the files.
        files: description of the files.
    """
    parts = {part: Described(folder, config, {}) for part, config in files.parts.items()}
    main = Described(folder, read_json(folder, "config.json"), files.tensors, parts)
    return build(recipe_of(layout.model(main), layout.stage, layout.objectives))[0]


def with_names(
    layout: Layout, files: Files, weights: RunWeights, parts: Mapping[str, str]
) -> tuple[Files, frozenset[str], list[str]]:
    """Write the published names of parts into config.json, such as `mm_vision_tower`.

    Args:
        layout: layout of the files.
        files: description of the files.
        weights: weights of the run.
        parts: part -> place of `--with`, which is compared with the run where the files do not hold the part.
    Returns:
        The description, the parts whose places have the run's weights, and lines about parts that were not compared.
    Raises:
        UserError: no published part has the sizes of the run's, or the place has other numbers or weights than the run.
    """
    config, equal, lines = dict(files.config), set(), []
    for part, name in files.names.items():
        kind, key = layout.separate[part]
        place = parts.get(part, name)
        if not place:
            raise UserError(
                f"{key!r} of config.json in {layout.name} names the published {part} encoder, but no known "
                f"published encoder has the sizes of that of the run. Add --with {part}=PLACE, a published name "
                "or a folder"
            )
        config[key] = place
        module = weights.module.get_submodule(layout.place(part))
        if part in parts and part in files.parts:
            check_config(module, local_place(place), part, arguments_of(part))
            check_equal(layout.place(part), f"{kind}:{place}", weights)
            equal.add(part)
        elif part in files.parts and not (is_published(module) and (module.weights or "").startswith(f"{kind}:")):
            lines.append(
                f"{key} is {place}, the published name of an encoder of these sizes; its weights were not compared "
                f"with the run's, --with {part}={place} does it"
            )
    return replace(files, config=config), frozenset(equal), lines


def check_equal(path: str, reference: str, weights: RunWeights) -> None:
    """Refuse published weights of a part that are not the run's, in fp32, fp16 or bf16.

    Args:
        path: path of the part in the model.
        reference: reference of the weights, see `lit_mm.weights.source.load_part`.
        weights: weights of the run.
    Raises:
        UserError: a tensor differs.
    """
    module = weights.module.get_submodule(path)
    origin = Origin(reference, module)
    for name, _ in kept_tensors(module):
        value, published = weights.weight(f"{path}.{name}").float(), origin.weight(name)
        if not any(torch.equal(value, published.to(dtype).float()) for dtype in FLOATS):
            raise UserError(
                f"{reference.partition(':')[2]!r} differs from {str(weights.checkpoint.path)!r} in the weights of "
                f"'{path}.{name}'. Name the files of the training, or export to a layout that contains this part"
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
        f"{layout} has {len(files.outside)} tensors that no run holds, such as {name!r} {shape}: the "
        f"layers of the {part} encoder after the one whose features are read. Name its published files: "
        f"--with {part}=openai/clip-vit-large-patch14-336, or a folder of the encoder of the training"
    )


def published_files(
    needed: Collection[str], source: Path | None, model: dict[str, Any], parts: Mapping[str, str]
) -> dict[str, list[TensorFiles]]:
    """Open the published files of parts: of `--with`, of the recipe's `weights`, and of the import, in this order.

    Args:
        needed: parts whose files are needed.
        source: run that `import` made; None for a run that was not imported.
        model: section `model` of the recipe.
        parts: part -> place of `--with`.
    """
    opened: dict[str, list[TensorFiles]] = {}
    for part in needed:
        places = [parts[part]] if part in parts else []
        section = model["init_args"].get(part)
        reference = (section.get("init_args", {}).get("weights") if isinstance(section, dict) else None) or ""
        kind, _, joined = reference.partition(":")
        if kind in MAPS and part not in parts:
            places += [p for p in places_of(joined) if Path(os.path.expanduser(p)).exists() or is_published_name(p)]
        opened[part] = [TensorFiles(tensor_files(local_place(place))) for place in places]
        if source is not None:
            opened[part].append(TensorFiles([source / "published.safetensors"]))
    return opened


def with_rows(table: Tensor, rows: int | None) -> Tensor:
    """Append copies of the mean row to a table until it has `rows` rows; None changes nothing."""
    if rows is None:
        return table
    mean = table.double().mean(0, keepdim=True).to(table.dtype)
    return torch.cat([table, mean.expand(rows - len(table), -1)])


def with_old_rope_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Repeat the numbers of the rotary positions where programs before transformers 5 read them.

    Args:
        config: config of a language model, or of a multimodal model around one, as transformers 5 writes it.
    """
    rope = config.get("rope_parameters") or {}
    numbers = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if rope.get(key) is not None}
    text = {"text_config": with_old_rope_keys(config["text_config"])} if "text_config" in config else {}
    return {**config, **numbers, **text}


def write_texts(folder: Path, files: Files, tokenizer: str) -> None:
    """Write configs and tokenizer of a layout to a new folder.

    Args:
        folder: the new folder.
        files: description of the layout's files.
        tokenizer: reference of the run's tokenizer.
    """
    folder.mkdir(parents=True)
    writes_bos = save_tokenizer(tokenizer, folder, files.token)
    (folder / "config.json").write_text(json.dumps(with_old_rope_keys(files.config), indent=1) + "\n")
    for name, reference in files.tokenizers.items():
        (folder / name).mkdir()
        save_tokenizer(reference, folder / name)
    for name, text in files.texts.items():
        (folder / name).write_text(text)
    template = load_tokenizer(tokenizer).chat_template
    if files.chat is None and template is not None:
        (folder / "chat_template.jinja").write_text(template)
    if files.chat is not None:
        (folder / "chat_template.jinja").write_text(
            files.chat("" if writes_bos else load_tokenizer(tokenizer).bos or "")
        )
