"""Translation of configs of the version before this one to today's keys. The next version deletes this module.

A checkpoint keeps the config of its run. `translate_config` converts it to the form that the command line reads now, so
that `evaluate`, `generate`, `--init_from` and resuming take older checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

Config = dict[str, Any]

# Old module -> new one; the first entry that fits a path wins
MODULES = {
    "lit_mm.strategies": "lit_mm.distributed.zero",
    "lit_mm.layout": "lit_mm.samples.layout",
    "lit_mm.processor": "lit_mm.samples.processor",
    "lit_mm.optim": "lit_mm.stages.optimizer",
    "lit_mm.named": "lit_mm.families.named",
    "lit_mm.metrics": "lit_mm.evaluation",
    "lit_mm.data.decode": "lit_mm.documents.decode",
    "lit_mm.data.document": "lit_mm.documents.document",
    "lit_mm.data.files": "lit_mm.documents.files",
    "lit_mm.data.sources": "lit_mm.documents.sources",
    "lit_mm.data.collate": "lit_mm.samples.collate",
    "lit_mm.data.pairs": "lit_mm.samples.pairs",
    "lit_mm.data.pixels": "lit_mm.samples.pixels",
    "lit_mm.data.truncate": "lit_mm.samples.truncate",
    "lit_mm.data": "lit_mm.stream",
    "datamodules.stream": "lit_mm.stream.datamodule",
}
FAMILY = re.compile(r"lit_mm\.families\.[a-z]\w*\.([A-Z]\w*)")
TOP_LEVEL = re.compile(r"(?:callbacks|datamodules)(?:\.\w+)*\.[A-Z]\w*")  # a class in a package that was not in lit_mm

MEAN_COLOUR = [122, 116, 104]  # CLIP's mean, the padding of LLaVA-1.5
BLACK = [0, 0, 0]
CHAT = {"class_path": "lit_mm.prompts.llava.ChatPrompt"}
QWEN_CHAT = {"class_path": "lit_mm.prompts.qwen_vl.QwenChat"}
FUNCTIONS = {
    "plan_square": "lit_mm.tiling.Stretch",
    "plan_centre_crop": "lit_mm.tiling.CentreCrop",
    "plan_pad": "lit_mm.tiling.Pad",
    "plan_anyres": "lit_mm.tiling.AnyRes",
    "plan_uhd": "lit_mm.tiling.Uhd",
    "plan_uhd_arxiv": "lit_mm.tiling.UhdArxiv",
    "plan_hd": "lit_mm.tiling.Hd",
    "plan_windows": "lit_mm.tiling.Windows",
    "plan_whole": "lit_mm.tiling.Whole",
    "in_order": "lit_mm.samples.InOrder",
    "between_flags": "lit_mm.samples.BetweenFlags",
    "global_then_tiles": "lit_mm.samples.GlobalThenTiles",
    "slices_then_overview": "lit_mm.samples.SlicesThenOverview",
    "base_then_unpadded_rows": "lit_mm.samples.BaseThenUnpaddedRows",
    "apply_partial_lora": "lit_mm.language.partial_lora.PartialLoRA",
    "apply_lora": "lit_mm.layers.adapters.LoRA",
    "apply_window_adapters": "lit_mm.vision.window_adapters.WindowAdapters",
}
SIDES = {"Llava": 224, "QwenVL": 448}  # default `image_size`; 336 elsewhere
ASPECTS = {"Llava": "crop", "LlavaNext": "anyres", "LlavaUHD": "slices", "QwenVL": "stretch"}  # "pad" elsewhere
LENGTHS = {"LlavaNext": 4096, "Vila": 4096}  # default `max_length`; 2048 elsewhere
BY_ASPECT = {"Llava", "Llava15", "LlavaNext", "LlavaUHD", "QwenVL", "Vila"}


def translate_config(config: Mapping[str, Any]) -> Config:
    """Translate a config of the version before to today's keys and class paths.

    A complete config of today is returned unchanged. A config without some keys of stages gets those of
    `add_stage_keys`, with their defaults.

    Args:
        config: recipe as parsed YAML; it is not changed.
    """
    translated = deepcopy(dict(config))
    for step in STEPS:
        translated = step(translated)
    return translated


def translate_family(family: str) -> str:
    """Shorten the import path of a family: lit_mm.families.llava.Llava -> lit_mm.families.Llava."""
    return FAMILY.sub(r"lit_mm.families.\1", family)


# --- paths -----------------------------------------------------------------------------------------------------------
def translate_paths(config: Config) -> Config:
    """Replace the import paths of modules that have moved, anywhere in the config."""

    def walk(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: walk(item) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item) for item in value]
        return translate_path(value) if isinstance(value, str) else value

    return walk(config)


def translate_path(path: str) -> str:
    """Replace one import path. Other texts, and paths that have not moved, are returned unchanged."""
    path = translate_family(path)
    for before, after in MODULES.items():
        if path.startswith(f"{before}.") and not path.startswith(f"{after}."):
            return after + path.removeprefix(before)
    return f"lit_mm.{path}" if TOP_LEVEL.fullmatch(path) else path


# --- inputs ----------------------------------------------------------------------------------------------------------
def translate_inputs(config: Config) -> Config:
    """Turn `by_stage`, `aspect`, `limits`, tiling functions and prompts of a family into `inputs`."""
    model = config.get("model")
    if not isinstance(model, Mapping) or not isinstance(model.get("class_path"), str):
        return config
    family, arguments = model["class_path"].rpartition(".")[2], dict(model.get("init_args") or {})
    translate = INPUTS.get(family)
    if translate is None or not is_old(family, arguments):
        return config
    inputs, by_stage = translate(family, arguments)
    if inputs:
        arguments["inputs"] = inputs
    elif family != "TypedPages":
        arguments.pop("inputs", None)
    config = config | {"model": {**model, "init_args": arguments}}
    if by_stage and isinstance(config.get("stages"), list):
        config["stages"] = [
            stage | {"inputs": by_stage[stage["name"]]} if by_stage.get(stage.get("name")) else stage
            for stage in config["stages"]
        ]
    return config


def is_old(family: str, arguments: Mapping[str, Any]) -> bool:
    """Return True if a model's arguments have the form of the version before."""
    inputs = arguments.get("inputs")
    values = inputs if isinstance(inputs, Mapping) else {}
    functions = [
        values.get("tiling"),
        values.get("layout"),
        arguments.get("injection"),
        arguments.get("vision_injection"),
    ]
    return bool(
        arguments.keys() & {"by_stage", "limits", "rule", "max_slices"}
        or values.keys() & {"aspect", "image_size"}
        or (family in OWN_PROMPT and arguments.keys() & {"prompt", "max_length"})
        or any(is_function(value) for value in functions)
    )


def is_function(value: Any) -> bool:
    """Return True for a function of the version before: {function: ..., arguments: ...}, or its import path."""
    if isinstance(value, Mapping):
        return "function" in value
    return isinstance(value, str) and value.rpartition(".")[2] in FUNCTIONS


def component(name: str, **arguments: Any) -> Config:
    """Build the config of a tiling or layout; arguments that are None are left out."""
    arguments = {key: value for key, value in arguments.items() if value is not None}
    return {"class_path": name} | ({"init_args": arguments} if arguments else {})


def from_function(value: Any) -> Any:
    """Convert {function: lit_mm.tiling.hd.plan_hd, arguments: ...} to {class_path: lit_mm.tiling.Hd, ...}."""
    path, arguments = (value["function"], value.get("arguments")) if isinstance(value, Mapping) else (value, None)
    return component(FUNCTIONS.get(path.rpartition(".")[2], path), **(arguments or {}))


def changes(stage: Config, model: Config) -> Config:
    """Return the inputs of a stage that differ from the model's."""
    return {key: value for key, value in stage.items() if value != model.get(key)}


Translated = tuple[Config, dict[str, Config]]  # inputs of the model, and name of a stage -> inputs


def by_aspect(family: str, arguments: Config) -> Translated:
    """Turn `aspect` and `image_size` of LLaVA's families, VILA and Qwen-VL into a tiling and a layout."""
    stages, inputs = arguments.pop("by_stage", None) or {}, arguments.get("inputs")
    rule, slices = arguments.pop("rule", None), arguments.pop("max_slices", None)
    patch = ((arguments.get("vision") or {}).get("init_args") or {}).get("patch", 14)
    side = arguments.get("image_size", SIDES.get(family, 336))
    rule = None if rule == "official" else rule

    def full(inputs: Config) -> Config:
        size, aspect = inputs.get("image_size") or side, inputs.get("aspect", "pad")
        limit = 1 if aspect == "overview" else slices
        tiling, layout = {
            "stretch": ("lit_mm.tiling.Stretch", "InOrder"),
            "crop": ("lit_mm.tiling.CentreCrop", "InOrder"),
            "pad": ("lit_mm.tiling.Pad", "InOrder"),
            "anyres": ("lit_mm.tiling.AnyRes", "BaseThenUnpaddedRows"),
            "overview": ("lit_mm.tiling.Uhd", "InOrder"),
            "slices": ("lit_mm.tiling.Uhd", "SlicesThenOverview"),
            "slices_arxiv": ("lit_mm.tiling.UhdArxiv", "InOrder"),
        }[aspect]
        if aspect == "anyres":
            sizes = {"tile": size, "rule": rule}
        elif aspect in ("stretch", "crop", "pad"):
            sizes = {"size": size}
        else:
            sizes = {"size": size, "patch": patch, "max_slices": limit}
        return {
            "tiling": component(tiling, **sizes),
            "layout": component(f"lit_mm.samples.{layout}", rule=rule if aspect == "anyres" else None),
            "prompt": inputs.get("prompt") or CHAT,
            "fill": BLACK if aspect == "anyres" else MEAN_COLOUR,
            "max_length": inputs.get("max_length", 2048),
        }

    default = {"aspect": ASPECTS.get(family, "pad"), "max_length": LENGTHS.get(family, 2048)}
    default |= {"prompt": QWEN_CHAT} if family == "QwenVL" else {}
    model = full(default if inputs is None else inputs)
    return model, {name: changes(full(inputs or {}), model) for name, inputs in stages.items()}


def by_function(family: str, arguments: Config) -> Translated:
    """Turn the functions of `Recombined` into frozen dataclasses."""
    for key in ("injection", "vision_injection"):
        if is_function(arguments.get(key)):
            arguments[key] = from_function(arguments[key])

    def full(views: Config) -> Config:
        layout = views.get("layout", "lit_mm.samples.layout.in_order")
        return {
            "tiling": from_function(views["tiling"]) if is_function(views.get("tiling")) else views.get("tiling"),
            "layout": from_function(layout) if is_function(layout) else layout,
            "prompt": views.get("prompt") or CHAT,
            "fill": views.get("fill", MEAN_COLOUR),
            "max_length": views.get("max_length", 4096),
        }

    stages, model = arguments.pop("by_stage", None) or {}, full(arguments["inputs"])
    return model, {name: changes(full(views), model) for name, views in stages.items()}


def by_limits(family: str, arguments: Config) -> Translated:
    """Turn the `limits` of 4KHD into tilings."""
    stages, limits = arguments.pop("by_stage", None) or {}, arguments.pop("limits", None)
    prompt, tile = arguments.pop("prompt", None), arguments.get("tile", 336)

    def hd(max_tiles: int) -> Config:
        return component("lit_mm.tiling.Hd", max_tiles=max_tiles, tile=tile)

    def full(limits: Config) -> Config:
        sources = limits.get("by_source") or {}
        return {
            "tiling": hd(limits.get("max_tiles", 25)),
            "by_source": {source: hd(most) for source, most in sources.items()},
            "max_length": limits.get("max_length", 16384),
        }

    model = full(limits or {}) | ({"prompt": prompt} if prompt else {})
    return model, {name: changes(full(limits or {}), model) for name, limits in stages.items()}


def by_prompt(family: str, arguments: Config) -> Translated:
    """Move `prompt` and `max_length` of XComposer, XComposer2 and Monkey to `inputs`; "whole" becomes a tiling."""
    stages, prompt = arguments.pop("by_stage", None) or {}, arguments.pop("prompt", None)
    length = arguments.pop("max_length", None)
    inputs = {} if prompt is None else {"prompt": prompt}
    inputs |= {} if length is None else {"max_length": length}
    whole = component(
        "lit_mm.tiling.Whole", size=arguments.get("size", [896, 896]), window=arguments.get("window", 448)
    )
    return inputs, {name: {"tiling": whole} for name in stages}


def typed_pages(family: str, arguments: Config) -> Translated:
    """Move the prompts of the stages of the nano language model's pre-training into their `inputs`."""
    return {}, {name: {"prompt": prompt} for name, prompt in (arguments.pop("by_stage", None) or {}).items()}


INPUTS: dict[str, Callable[[str, Config], Translated]] = {
    **dict.fromkeys(sorted(BY_ASPECT), by_aspect),
    **dict.fromkeys(("XComposer", "XComposer2", "Monkey"), by_prompt),
    "Recombined": by_function,
    "XComposer2HD": by_limits,
    "TypedPages": typed_pages,
}
OWN_PROMPT = {"XComposer", "XComposer2", "XComposer2HD", "Monkey"}


# --- schedules -------------------------------------------------------------------------------------------------------
def translate_schedules(config: Config) -> Config:
    """Join `schedule`, `warmup` and `floor` of every stage in one object, such as `lit_mm.stages.Cosine`."""
    stages = config.get("stages")
    if not isinstance(stages, list) or not all(isinstance(stage, Mapping) for stage in stages):
        return config
    return {**config, "stages": [translate_schedule(stage) for stage in stages]}


def translate_schedule(stage: Config) -> Config:
    """Translate the schedule of one stage; a stage in today's form is returned unchanged."""
    name = stage.get("schedule", "cosine")
    if name not in ("cosine", "linear", "constant") or not {"schedule", "warmup", "floor"} & stage.keys():
        return stage
    floor = 0.0 if name == "constant" else stage.get("floor", 0.0)  # constant never read it
    arguments = {"warmup": stage.get("warmup", 0.01), "start": 0.0, "floor": floor}
    schedule = {"class_path": f"lit_mm.stages.{name.capitalize()}", "init_args": arguments}
    others = {key: value for key, value in stage.items() if key not in ("warmup", "floor", "schedule")}
    return {**others, "schedule": schedule}


def add_stage_keys(config: Config) -> Config:
    """Add the stage keys that are new in this version, with values that repeat the earlier behaviour."""
    stages = config.get("stages")
    for stage in stages if isinstance(stages, list) else []:
        if not isinstance(stage, dict):
            continue
        stage.setdefault("noisy", [])
        stage.setdefault("starts_from", None)
        for train in (stage.get("train") or {}).values():
            train.setdefault("decay_vectors", False)
            train.setdefault("adapter", None)
            train.setdefault("average", None)
            train.setdefault("optional", False)
    return config


def translate_trainer(config: Config) -> Config:
    """Reset the Trainer's `logger` and `enable_checkpointing` to null where the version before wrote false."""
    trainer = config.get("trainer")
    for key in ("logger", "enable_checkpointing") if isinstance(trainer, dict) else ():
        if trainer.get(key) is False:
            trainer[key] = None
    return config


# --- parts -----------------------------------------------------------------------------------------------------------
def translate_checkpointing(config: Config) -> Config:
    """Turn the `activation_checkpointing` of a part from true or false to "full" or "none"."""

    def walk(value: Any) -> Any:
        if isinstance(value, list):
            return [walk(item) for item in value]
        if not isinstance(value, Mapping):
            return value
        words = {True: "full", False: "none"}
        return {
            key: words[item] if key == "activation_checkpointing" and isinstance(item, bool) else walk(item)
            for key, item in value.items()
        }

    return walk(config)


STEPS: tuple[Callable[[Config], Config], ...] = (
    translate_paths,
    translate_inputs,
    translate_schedules,
    add_stage_keys,
    translate_trainer,
    translate_checkpointing,
)
