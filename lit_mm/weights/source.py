"""Published weights by reference: which file, and by which key map they become ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from lit_mm.assets import NANO_WEIGHTS
from lit_mm.errors import UserError
from lit_mm.weights.clip import hf_clip_to_vit, openai_clip_to_vit
from lit_mm.weights.convert import load_strict, read_checkpoint
from lit_mm.weights.eva import eva_to_vit
from lit_mm.weights.internlm2 import internlm2_to_llama, llama_to_llama
from lit_mm.weights.qwen_vl import qwen_to_llama, qwen_vl_parts

ADDED = (".lora_a.", ".lora_b.", ".adapters.")  # what a family adds to a published part starts fresh
State = dict[str, Tensor]
MAPS: dict[str, Callable[[State, nn.Module], State]] = {
    "clip": lambda state, part: hf_clip_to_vit(state),
    "openai-clip": lambda state, part: openai_clip_to_vit(state),
    "eva": lambda state, part: eva_to_vit(state),
    "internlm2": lambda state, part: internlm2_to_llama(
        state, heads=part.heads, kv_heads=part.kv_heads, partial_lora=False
    ),
    "llama": lambda state, part: llama_to_llama(state),
    "qwen": lambda state, part: qwen_to_llama(state),
    "qwen-vl-vision": lambda state, part: qwen_vl_parts(state, heads=part.heads)["vision"],
    "qwen-vl-connector": lambda state, part: qwen_vl_parts(state)["connector"],
    "qwen-vl-language": lambda state, part: qwen_vl_parts(state)["language"],
}


@runtime_checkable
class Published(Protocol):
    """A part with published weights.

    Attributes:
        weights: reference of the weights, see `load_part`; None: it starts fresh.
    """

    weights: str | None


def is_added(name: str) -> bool:
    """Is a parameter of this name one that a family adds to a published part?"""
    return any(added in f".{name}" for added in ADDED)


def load_part(module: nn.Module, reference: str, part: str) -> None:
    """Fill a part with published weights.

    Args:
        module: the part.
        reference: "nano:<name>" for a stored nano backbone; "<map>:<place>" with a key map of `MAPS` and a file, a
            folder or a published name.
        part: its name, for errors.
    Raises:
        UserError: an unknown key map, a place that does not exist, or weights that do not fit the part.
    """
    kind, _, place = reference.partition(":")
    if kind == "nano":
        _fill(module, read_checkpoint(NANO_WEIGHTS / f"{place}.safetensors"))
        return
    if kind not in MAPS or not place:
        raise UserError(
            f"the weights {reference!r} of part {part!r} are not understood: write <map>:<place> with a map of "
            f"{['nano', *MAPS]}, such as clip:openai/clip-vit-large-patch14-336"
        )
    _fill(module, MAPS[kind](read_checkpoint(_local(place)), module))


def _fill(module: nn.Module, state: State) -> None:
    """Load a part's state in plain names: where a linear is wrapped, the plain weight goes to the wrapped one."""
    wrapped = {name.replace(".base.", "."): name for name in module.state_dict()}
    load_strict(module, {wrapped.get(name, name): value for name, value in state.items()}, allow_missing=ADDED)


def _local(place: str) -> Path:
    """A path as it is; a published name as the folder it is downloaded to."""
    if Path(place).exists() or place.count("/") != 1 or place.startswith((".", "/", "~")):
        return Path(place)
    from huggingface_hub import snapshot_download  # only where something is downloaded

    try:
        return Path(snapshot_download(place, allow_patterns=["*.safetensors", "*.bin", "*.json"]))
    except OSError as error:  # the hub's errors: no such name, no access, no network
        raise UserError(
            f"the weights {place!r} cannot be downloaded ({str(error).strip().partition(chr(10))[0].rstrip('.')}). "
            "Correct `weights:`, or give a local file or folder"
        ) from error
