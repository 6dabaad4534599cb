"""The description of files that a model becomes in another layout than its own."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel

from lit_mm.commands import conversions
from lit_mm.errors import UserError
from lit_mm.weights.stream import Stored

if TYPE_CHECKING:
    from lit_mm.module import MultimodalModule
    from lit_mm.samples.processor import Processor

TABLES = (
    *("language_model.embed_tokens.weight", "lm_head.weight", "model.embed_tokens.weight", "shared.weight"),
    "model.decoder.embed_tokens.weight",
)
ROWS = 64  # the rows of a table that grows are a multiple of it, as in the converted checkpoints


@dataclass(frozen=True)
class Files:
    """What the files of a layout hold for one model.

    Attributes:
        config: config.json.
        tensors: dtype and shape of every tensor by its published name. Tables have as many rows as in the model.
        rows: name of a table -> number of its rows in the files, for tables that grow by the mean of their rows.
        outside: name of a tensor that no run holds -> part, and name in the published files of the part.
        token: special token that the tokenizer gets behind its own ones, for the places of images; "" for none.
        texts: name of a further file -> its text.
        tokenizers: name of a folder -> reference of the tokenizer of a second text.
        tokenizer: reference of the tokenizer beside the weights; None for that of the language model.
        chat: function from the token at the start of a text, "" where the tokenizer writes it, to the chat template of
            transformers; None for a prompt that is no chat.
        parts: part that the files do not hold -> config.json of its published files.
        names: part whose published name config.json has -> this name, "" if no published part has its sizes.
    """

    config: dict[str, Any]
    tensors: Mapping[str, Stored]
    rows: Mapping[str, int] = field(default_factory=dict)
    outside: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    token: str = ""
    texts: Mapping[str, str] = field(default_factory=dict)
    tokenizers: Mapping[str, str] = field(default_factory=dict)
    tokenizer: str | None = None
    chat: Callable[[str], str] | None = None
    parts: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Conversion:
    """The conversion of the models of one family to one layout.

    Attributes:
        layout: name of the layout in `lit_mm.weights.layouts`.
        family: import path of the family's class.
        files: function from a model, possibly without weights, to the description of its files.
        objectives: the stage weighs one of these; empty for every stage.
    """

    layout: str
    family: str
    files: Callable[[MultimodalModule], Files]
    objectives: frozenset[str] = frozenset()


def families() -> list[ModuleType]:
    """Import the modules of this package."""
    names = [name for _, name, _ in pkgutil.iter_modules(conversions.__path__)]
    return [importlib.import_module(f"{conversions.__name__}.{name}") for name in sorted(names)]


def all_conversions() -> list[Conversion]:
    """List the conversions of all families."""
    return [conversion for module in families() for conversion in vars(module).get("CONVERSIONS", ())]


def is_of(conversion: Conversion, family: str, file_format: str) -> bool:
    """Return True if a conversion is of a family and of a format, such as "hf"."""
    return conversion.family == family and conversion.layout.endswith(f"/{file_format}")


def is_layout_of(layout: str, family: str, file_format: str, objectives: Collection[str]) -> bool:
    """Return True if a layout is of a format and can hold what a stage has trained.

    Args:
        layout: name of the layout.
        family: import path of the family's class.
        file_format: "hf", "authors" or "peft".
        objectives: objectives of the stage.
    """
    if not layout.endswith(f"/{file_format}"):
        return False
    of_layout = [each for each in all_conversions() if each.family == family and each.layout == layout]
    return all(not each.objectives or not each.objectives.isdisjoint(objectives) for each in of_layout)


def conversion_of(family: str, file_format: str, objectives: Collection[str] = ()) -> Conversion:
    """Find the conversion of a family to a format.

    Args:
        family: import path of the family's class.
        file_format: "hf" or "authors".
        objectives: objectives of the stage whose end is written.
    Raises:
        UserError: there is none; the message gives the reason where it is known.
    """
    every = all_conversions()
    for conversion in every:
        fits = not conversion.objectives or not conversion.objectives.isdisjoint(objectives)
        if fits and is_of(conversion, family, file_format):
            return conversion
    reason = refusal(family, file_format)
    possible = [conversion.layout for conversion in every if conversion.family == family]
    advice = f"This run can be written as {', '.join(possible)}"
    if not possible:
        advice = "A run that starts from an imported checkpoint is exported to the layout of that checkpoint"
    raise UserError(f"--format {file_format}: {reason}. {advice}")


def refusal(family: str, file_format: str) -> str:
    """Say why a family has no conversion to a format.

    Args:
        family: import path of the family's class.
        file_format: "hf" or "authors".
    """
    reasons = {pair: reason for module in families() for pair, reason in vars(module).get("REFUSALS", {}).items()}
    return reasons.get((family, file_format), f"no layout of this format is known for {family}")


def text_config(module: MultimodalModule, kinds: Collection[str]) -> PretrainedConfig:
    """Build the config of the language model, with the special tokens of the run's tokenizer.

    Args:
        kinds: kinds of language models that the layout holds, as in the key `model_type` of transformers.
    Raises:
        UserError: the language model is of another kind.
    """
    config = module.network.language.lm.config
    if config.model_type not in kinds:
        raise UserError(f"this layout holds a language model of {' or '.join(kinds)}; the run has {config.model_type}")
    tokenizer = module.processor.tokenizer
    sizes = {key: value for key, value in config.to_dict().items() if key != "use_cache"}
    special = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    return type(config).from_dict(sizes | special)


def tensors_of_transformers(
    config: PretrainedConfig,
    dtype: str,
    rows: int,
    published: Mapping[str, str] | None = None,
    family: type[PreTrainedModel] | None = None,
) -> dict[str, Stored]:
    """List the tensors that transformers' model of a config has.

    Args:
        config: config of a multimodal model.
        dtype: dtype of the published files.
        rows: number of rows of the embeddings and of the head in the model.
        published: beginning of a name in transformers today -> beginning in the published files; the first that fits
            is taken. None for the same names.
        family: class of the model; None for the one that the config names.
    """
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config) if family is None else family(config)
    published = published or {}
    tensors: dict[str, Stored] = {}
    text = config.get_text_config()
    tied = text.tie_word_embeddings and text.model_type != "t5"  # transformers 5 says so of every T5
    for name, tensor in model.state_dict().items():
        if tied and name.endswith("lm_head.weight"):
            continue
        shape = (rows, *tensor.shape[1:]) if name.endswith(TABLES) else tuple(tensor.shape)
        start = next((start for start in published if name.startswith(start)), "")
        tensors[published.get(start, "") + name.removeprefix(start)] = Stored(dtype, shape)
    return tensors


def config_values(config: PretrainedConfig, name: str, dtype: str) -> dict[str, Any]:
    """Return the values of config.json. A T5 has a head of its own, which transformers 5 does not write.

    Args:
        config: config of a multimodal model.
        name: class of the model.
        dtype: dtype of the files.
    """
    values = config.to_dict() | {"architectures": [name], "dtype": dtype}
    if values["text_config"]["model_type"] == "t5":
        values["text_config"]["tie_word_embeddings"] = False
    return values


def pixel_keys(processor: Processor) -> dict[str, Any]:
    """Return the keys of preprocessor_config.json by which transformers makes views of images as CLIP does.

    They stand for the conversion to RGB, a bicubic resize, the scale from 0 to 1 and the normalisation.
    """
    return {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(processor.normalise.mean),
        "image_std": list(processor.normalise.std),
        "resample": 3,
        "rescale_factor": 1 / 255,
    }


def processor_texts(
    name: str, module: MultimodalModule, side: int, more: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Write the configs of a processor of the BLIP families, which stretches images to squares.

    Args:
        name: class of the processor.
        module: model, whose normalisation is written.
        side: side of the squares, pixels.
        more: keys of processor_config.json that the family adds.
    """
    pixels = {
        "image_processor_type": "BlipImageProcessor",
        "processor_class": name,
        "size": {"height": side, "width": side},
        **pixel_keys(module.processor),
    }
    return {
        "preprocessor_config.json": json.dumps(pixels, indent=1),
        "processor_config.json": json.dumps({"processor_class": name, **(more or {})}),
    }


def id_of(token: str, module: MultimodalModule) -> int:
    """Return the id of a special token in the files: that of the run's tokenizer, or the first one behind it."""
    tokenizer = module.processor.tokenizer
    number = tokenizer.vocabulary.find(token)
    return tokenizer.size if number is None else number


def grown(tensors: Mapping[str, Stored], rows: int) -> dict[str, int]:
    """Return the names of embeddings and head with `rows`, if they have fewer rows in the model."""
    return {name: rows for name, stored in tensors.items() if name.endswith(TABLES) and stored.shape[0] != rows}


def rows_with(token_id: int, rows: int) -> int:
    """Return the rows of a table of `rows` rows that has one for a token, too."""
    return rows if token_id < rows else -(-(token_id + 1) // ROWS) * ROWS
