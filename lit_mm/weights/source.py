"""Weights of a part by reference: `<map>:<place>` names a key map and a file, a folder or a published name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from lit_mm.assets import NANO_WEIGHTS
from lit_mm.errors import UserError
from lit_mm.weights.agreement import check_config
from lit_mm.weights.blip import bert_to_med, blip_part, deit_to_vit
from lit_mm.weights.blip2 import bert_to_connector, blip2_part, blip2_qformer
from lit_mm.weights.clip import hf_clip_to_vit, openai_clip_to_vit
from lit_mm.weights.config_file import CONFIG, config_folder, is_published_name, read_config, split_revision
from lit_mm.weights.convert import load_strict, read_checkpoint
from lit_mm.weights.decoders import decoder_to_pretrained
from lit_mm.weights.fuyu import fuyu_parts
from lit_mm.weights.hub import download_weights
from lit_mm.weights.internlm2 import internlm2_to_llama, llama_to_llama
from lit_mm.weights.qwen_vl import qwen_to_llama, qwen_vl_parts
from lit_mm.weights.t5 import t5_to_t5
from lit_mm.weights.timm import eva_clip_to_timm, hf_siglip_to_timm, open_clip_to_timm, timm_to_timm

# Parameters that a family or a stage adds to a published part; no file holds them
ADDED = (
    *(".lora_a.", ".lora_b.", ".adapters.", ".lora_A.", ".lora_B.", ".lora_magnitude_vector."),
    *(".expert.", ".cross_attention.", ".cross_norm."),
)
State = dict[str, Tensor]
MAPS: dict[str, Callable[[State, nn.Module], State]] = {
    "clip": lambda state, part: hf_clip_to_vit(state),
    "openai-clip": lambda state, part: openai_clip_to_vit(state),
    "internlm2": lambda state, part: internlm2_to_llama(
        state, heads=part.heads, kv_heads=part.kv_heads, partial_lora=False
    ),
    "llama": lambda state, part: llama_to_llama(state),
    "qwen": lambda state, part: qwen_to_llama(state),
    "qwen-vl-vision": lambda state, part: qwen_vl_parts(state, heads=part.heads)["vision"],
    "qwen-vl-connector": lambda state, part: qwen_vl_parts(state)["connector"],
    "qwen-vl-language": lambda state, part: qwen_vl_parts(state)["language"],
    "timm": lambda state, part: timm_to_timm(state),
    "eva-clip": lambda state, part: eva_clip_to_timm(state),
    "open-clip": lambda state, part: open_clip_to_timm(state),
    "fuyu-vision": lambda state, part: fuyu_parts(state)["vision"],
    "fuyu-language": lambda state, part: fuyu_parts(state)["language"],
    "blip-vision": lambda state, part: blip_part(state, "vision"),
    "blip-text": lambda state, part: blip_part(state, "text"),
    "deit": lambda state, part: deit_to_vit(state),
    "blip2-vision": lambda state, part: blip2_part(state, "vision", part),
    "blip2-connector": lambda state, part: blip2_part(state, "connector", part),
    "blip2-language": lambda state, part: blip2_part(state, "language", part),
    "bert-connector": lambda state, part: bert_to_connector(state, part),
    "t5": lambda state, part: t5_to_t5(state),
    "bert-med": lambda state, part: bert_to_med(state, part),
    "transformers": lambda state, part: decoder_to_pretrained(
        state, model_type=part.model_type, heads=part.heads, kv_heads=part.kv_heads
    ),
    "language": lambda state, part: language_to_part(state, part),
    "blip2-qformer": lambda state, part: blip2_qformer(state, part),
    "siglip": lambda state, part: hf_siglip_to_timm(state),
}


@runtime_checkable
class OfTransformers(Protocol):
    """A decoder of transformers, whose published names depend on its model type."""

    model_type: str
    heads: int
    kv_heads: int


def language_to_part(state: State, part: nn.Module) -> State:
    """Rename a language model of transformers to the part that it fills: a `T5`, a `Pretrained` or a `Llama`."""
    if part.writes_target:
        return t5_to_t5(state)
    if isinstance(part, OfTransformers):
        return MAPS["transformers"](state, part)
    return llama_to_llama(state)


@runtime_checkable
class Published(Protocol):
    """A part with published weights.

    Attributes:
        weights: reference of the weights, see `load_part`; None: it starts fresh.
    """

    weights: str | None


def is_added(name: str) -> bool:
    """Return True if a family adds the parameter of this name to a published part."""
    return any(added in f".{name}" for added in ADDED)


def load_part(module: nn.Module, reference: str, part: str, path: str = "") -> list[str]:
    """Load published weights into a part.

    The config.json of a folder is compared with the part before a tensor is read.

    Args:
        module: the part.
        reference: "nano:<name>" for a stored nano backbone, or "<map>:<place>" with a key map in `MAPS` and a file,
            a folder or a published name. Places joined by "+" are read together; the first that has a tensor gives it.
        part: name of the part, for error messages.
        path: path of the part's arguments in a recipe, for error messages; "" means that of a part of the model.
    Returns:
        Names of the module's tensors that a key map leaves as they are, such as the cross-attention of a text model
        that starts from BERT. Parameters that a family adds are not among them.
    Raises:
        UserError: the key map is unknown, the place does not exist, the config.json, or names or shapes of tensors
            differ from those of the part.
    """
    kind, _, place = reference.partition(":")
    if kind == "nano":
        _fill(module, read_checkpoint(NANO_WEIGHTS / f"{place}.safetensors"))
        return []
    if kind not in MAPS or not place:
        raise UserError(
            f"weights {reference!r} of part {part!r}: expected <map>:<place> with a map out of "
            f"{['nano', *MAPS]}, such as clip:openai/clip-vit-large-patch14-336"
        )
    state: State = {}
    for single in places_of(place):
        folder = local_place(single)
        check_config(module, folder, part, path or arguments_of(part))
        state = read_checkpoint(folder) | state
    mapped = MAPS[kind](state, module)
    fresh = [
        name
        for name, tensor in module.state_dict().items()
        if name in mapped and not tensor.is_meta and tensor.numel() and mapped[name].data_ptr() == tensor.data_ptr()
    ]
    _fill(module, mapped)
    return fresh


def places_of(place: str) -> list[str]:
    """Split places joined by "+"."""
    return [place] if Path(os.path.expanduser(place)).exists() else place.split("+")


def check_local_config(module: nn.Module, reference: str, part: str, path: str) -> None:
    """Compare a part with the config.json of its weights if the file is on this machine; nothing is downloaded.

    Args:
        module, reference, part, path: see `load_part`.
    Raises:
        UserError: a number differs.
    """
    kind, _, joined = reference.partition(":")
    for place in places_of(joined) if kind in MAPS else ():
        if (folder := folder_here(place)) is not None:
            check_config(module, folder, part, path)


def local_config(reference: str) -> tuple[Path, dict[str, Any]] | None:
    """Return the first config.json of weights on this machine, and what it holds; None if there is none.

    Args:
        reference: see `load_part`.
    Raises:
        UserError: the file is no JSON object.
    """
    kind, _, joined = reference.partition(":")
    for place in places_of(joined) if kind in MAPS else ():
        here = folder_here(place)
        if here is not None and (file := config_folder(here) / CONFIG).is_file():
            return file, read_config(str(file))
    return None


def folder_here(place: str) -> Path | None:
    """Return a local path unchanged, and the folder of a published name whose config.json was downloaded before."""
    if not is_published_name(place):
        return Path(os.path.expanduser(place))
    from huggingface_hub import try_to_load_from_cache  # imported late: only published names need it

    try:
        name, revision = split_revision(place)
        file = try_to_load_from_cache(name, CONFIG, revision=revision)
    except ValueError:  # no published name has such letters; `load_part` tells it
        return None
    return Path(file).parent if isinstance(file, str) else None


def arguments_of(*names: str) -> str:
    """Return the path of a part's arguments in a recipe: the name of the part, behind those of the parts around it."""
    return ".".join(["model", *(f"init_args.{name}" for name in names), "init_args"])


def _fill(module: nn.Module, state: State) -> None:
    """Load a state in plain names; the weight of a linear that is wrapped goes to the linear inside the wrapper."""
    wrapped = {name.replace(".base.", ".").replace(".base_layer.", "."): name for name in module.state_dict()}
    load_strict(module, {wrapped.get(name, name): value for name, value in state.items()}, allow_missing=ADDED)


def local_place(place: str) -> Path:
    """Return a local path, with ~ replaced by the home folder; download a published name and return its folder.

    Raises:
        UserError: the name cannot be downloaded, or the place is an address.
    """
    if "://" in place:
        name = "/".join(place.partition("://")[2].split("/")[1:3])
        example = f", such as {name}," if name.count("/") == 1 else ""
        raise UserError(f"{place!r} is an address. Give a published name{example} or a local file or folder")
    return download_weights(place) if is_published_name(place) else Path(os.path.expanduser(place))
