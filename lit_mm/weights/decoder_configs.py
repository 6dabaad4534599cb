"""The config.json of published decoders, read with the defaults of transformers.

Configs of code that transformers does not have are renamed to those of a class that computes the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from lit_mm.errors import UserError
from lit_mm.weights.config_file import REFUSALS

Numbers = dict[str, Any]

DECODERS = (
    "gemma",
    "gemma2",
    "gemma3_text",
    "internlm3",
    "llama",
    "mistral",
    "mixtral",
    "opt",
    "persimmon",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
)
OLD_KEYS = ("rope_theta", "rope_scaling", "partial_rotary_factor", "architectures", "torch_dtype", "dtype")
ROPES = ("default", "linear", "llama3", "yarn")  # kinds whose frequencies do not depend on the length of the row


def settings_of(numbers: Numbers, *, check_keys: bool) -> PretrainedConfig:
    """Build the config of transformers for the numbers of a config.json.

    Args:
        numbers: the keys of a config.json.
        check_keys: True refuses keys that the kind of decoder does not have.
    Raises:
        UserError: the decoder is not packed, a key is unknown, or a value is refused by transformers.
    """
    kind = numbers.get("model_type")
    if kind not in DECODERS and kind not in RENAMED:
        raise UserError(
            f"`model_type` {kind!r} of a config is not among the decoders that read packed rows: "
            f"{sorted((*DECODERS, *RENAMED))}. Name one of these"
        )
    numbers = renamed(numbers)
    values = {key: value for key, value in numbers.items() if key not in ("model_type", "dtype", "torch_dtype")}
    keys = AutoConfig.for_model(numbers["model_type"]).to_dict().keys()
    if check_keys and (unknown := sorted(values.keys() - keys - set(OLD_KEYS))):
        raise UserError(f"the config of a {kind} has no keys {unknown}; it has {sorted(keys)}")
    values |= {"use_cache": False, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}  # the processor's
    try:
        settings = AutoConfig.for_model(numbers["model_type"], **values)
    except REFUSALS as error:
        raise UserError(f"transformers refuses the config of this {kind}: {error}") from error
    if settings.to_dict().get("use_bidirectional_attention"):
        raise UserError(f"{kind} with `use_bidirectional_attention` is an encoder and is not read")
    return settings


def limit_length(settings: PretrainedConfig) -> int | None:
    """Return the most tokens of a sample; None means no limit. "dynamic" frequencies become the plain ones below it.

    Those of "longrope" depend on each sample, see `lit_mm.language.long_rotary`.

    Raises:
        UserError: the rotary frequencies depend on the longest sample of a row.
    """
    if not settings.to_dict().get("rope_parameters"):
        return settings.max_position_embeddings  # a table of learned positions
    ropes = settings.rope_parameters
    limit = None
    for rope in ropes.values() if all(isinstance(value, dict) for value in ropes.values()) else [ropes]:
        kind = rope.get("rope_type", "default")
        if kind == "dynamic":  # the frequencies change beyond this length only
            limit = settings.max_position_embeddings
            rope["rope_type"] = "default"
        elif kind not in ROPES and (kind != "longrope" or rope is not ropes):
            raise UserError(
                f"rotary positions of type {kind!r} depend on the longest sample of a row, so rows cannot "
                f"be packed; types that can: {[*ROPES, 'dynamic', 'longrope']}"
            )
    return limit


def renamed(numbers: Numbers) -> Numbers:
    """Return a config of a class that transformers has; the config of other code is renamed to that of its equal."""
    rename = RENAMED.get(str(numbers.get("model_type")))
    return numbers if rename is None else rename(numbers)


def internlm_numbers(numbers: Numbers) -> Numbers:
    """Rename the config of InternLM (1) to that of Llama with biases on the four attention linears.

    Source: configuration_internlm.py of the release.
    """
    rotary = numbers.get("rotary") or {"base": numbers.get("rope_theta", 10000.0), "type": "dynamic"}
    scaling = {"rope_type": "dynamic", "factor": 1.0} if rotary.get("type") == "dynamic" else None
    return _renamed_keys(numbers, LLAMA_KEYS) | {
        "model_type": "llama",
        "rope_theta": float(rotary.get("base", 10000.0)),
        "rope_scaling": scaling,
        "attention_bias": bool(numbers.get("bias", True)),
    }


def internlm2_numbers(numbers: Numbers) -> Numbers:
    """Rename the config of InternLM2 to that of Llama, which computes the same.

    Raises:
        UserError: the linears have biases.
    """
    if numbers.get("bias"):
        raise UserError("InternLM2 with `bias: true` is not read; the published ones have false")
    return _renamed_keys(numbers, (*LLAMA_KEYS, "rope_theta", "rope_scaling")) | {"model_type": "llama"}


def qwen_numbers(numbers: Numbers) -> Numbers:
    """Rename the config of Qwen 1 to that of Qwen 2 without shared heads, which computes the same.

    Source: configuration_qwen.py of the release; its `intermediate_size` counts both halves of the feed-forward.
    """
    return {
        "model_type": "qwen2",
        "vocab_size": numbers["vocab_size"],
        "hidden_size": numbers["hidden_size"],
        "intermediate_size": numbers["intermediate_size"] // 2,
        "num_hidden_layers": numbers["num_hidden_layers"],
        "num_attention_heads": numbers["num_attention_heads"],
        "num_key_value_heads": numbers["num_attention_heads"],
        "max_position_embeddings": numbers.get("seq_length", 8192),
        "rms_norm_eps": numbers.get("layer_norm_epsilon", 1e-6),
        "rope_theta": numbers.get("rotary_emb_base", 10000.0),
        "tie_word_embeddings": numbers.get("tie_word_embeddings", False),
    }


def _renamed_keys(numbers: Numbers, keys: tuple[str, ...]) -> Numbers:
    return {key: numbers[key] for key in keys if key in numbers}


LLAMA_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
)
# Published with code of their own; other classes of transformers compute the same
RENAMED: dict[str, Callable[[Numbers], Numbers]] = {
    "internlm": internlm_numbers,
    "internlm2": internlm2_numbers,
    "qwen": qwen_numbers,
}
