"""Tables from the keys of a config.json to the arguments of our parts, by `model_type`, and comparisons by them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

from lit_mm.errors import UserError
from lit_mm.weights.agreement import Difference, compare_numbers
from lit_mm.weights.config_file import REFUSALS, half_of, without_type
from lit_mm.weights.decoder_configs import Numbers, limit_length, renamed, settings_of

# Keys of decoders that change no logits; `layer_types` has the windows of all layers
UNUSED = frozenset(
    {
        *("use_cache", "initializer_range", "init_std", "bos_token_id", "eos_token_id", "pad_token_id", "layerdrop"),
        *("pretraining_tp", "output_router_logits", "router_aux_loss_coef", "router_jitter_noise"),
        *("max_window_layers", "use_sliding_window", "no_rope_layer_interval", "use_bidirectional_attention"),
    }
)
PRETRAINED = "take lit_mm.language.pretrained.Pretrained for these weights"

LLAMA = {
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "head_dim": "head_width",
    "intermediate_size": "ffn_width",
    "vocab_size": "vocab_size",
    "rope_theta": "rope_theta",
    "rms_norm_eps": "norm_eps",
    "attention_bias": "attention_bias",
    "tie_word_embeddings": "tie_embeddings",
    "hidden_act": "activation",
    "mlp_bias": "mlp_bias",
    "rope_type": "rope_type",
    "partial_rotary_factor": "rotary_share",
}
# Numbers that the constructor of `Llama` does not change
LLAMA_FIXED: Numbers = {"activation": "silu", "mlp_bias": False, "rope_type": "default", "rotary_share": 1.0}
# Kinds that `Llama` computes -> values without a key
LLAMA_KINDS: dict[str, Numbers] = {
    "internlm3": {},
    "llama": {},
    "mistral": {"attention_bias": False, "mlp_bias": False},
    "qwen2": {"attention_bias": "qkv", "mlp_bias": False},
}

T5 = {
    "d_model": "width",
    "num_layers": "layers",
    "num_decoder_layers": "decoder_layers",
    "num_heads": "heads",
    "d_kv": "head_width",
    "d_ff": "ffn_width",
    "vocab_size": "vocab_size",
    "relative_attention_num_buckets": "buckets",
    "relative_attention_max_distance": "max_distance",
    "layer_norm_epsilon": "norm_eps",
    "decoder_start_token_id": "start_id",
    "feed_forward_proj": "feed_forward",
    "tie_word_embeddings": "tie_embeddings",
}
T5_KINDS = ("mt5", "t5")
T5_FIXED: Numbers = {"feed_forward": "gated-gelu", "tie_embeddings": False}

VISION = {
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "ffn_width",
    "patch_size": "patch",
    "image_size": "image_size",
    "hidden_act": "activation",
    "layer_norm_eps": "eps",
}
BERT = {
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "ffn_width",
    "max_position_embeddings": "max_positions",
    "layer_norm_eps": "eps",
    "hidden_act": "activation",
    "cross_attention_frequency": "cross_every",
    "encoder_hidden_size": "vision_width",
}
BERT_ACTIVATION = "gelu"  # the exact one
BLIP_TEXT_KINDS = ("bert", "blip_text_model")
QFORMER_KINDS = ("bert", "blip_2_qformer", "instructblip_qformer")
# Key of the data config of timm -> names of its number in the part, of which one is there
TIMM = {"mean": ("mean",), "std": ("std",), "input_size": ("position_size", "image_size")}
VIT_KIND = "clip_vision_model"
SIGLIP_KIND = "siglip_vision_model"
VISION_KINDS = ("blip_2_vision_model", VIT_KIND, "instructblip_vision_model", SIGLIP_KIND)


def compare_llama(config: Numbers, numbers: Numbers, max_positions: int) -> list[Difference]:
    """Compare the config.json of a decoder with `lit_mm.language.llama.Llama`.

    Args:
        config: the config.json, possibly of a multimodal model.
        numbers: arguments of `Llama`.
        max_positions: length of the longest sample, tokens. Sliding windows and dynamic rotary positions change nothing
            up to it.
    Raises:
        UserError: the config is damaged.
    """
    values = llama_values(config)
    if values is None:
        kind = half_of(config, "text_config").get("model_type")
        return [Difference("model_type", kind, "llama", advice=PRETRAINED)]
    limits = {"sliding_window": values.get("sliding_window")}
    if values["rope_type"] == "dynamic":
        limits["max_position_embeddings"] = values["max_position_embeddings"]
        values["rope_type"] = "default"
    too_long = [
        Difference(key, limit, f"max_positions {max_positions}", advice=f"set `max_positions` to it, or {PRETRAINED}")
        for key, limit in limits.items()
        if limit is not None and limit < max_positions
    ]
    advice = dict.fromkeys(LLAMA_FIXED, PRETRAINED)
    return compare_numbers(values, LLAMA, numbers | LLAMA_FIXED, advice) + too_long


def llama_values(config: Numbers) -> Numbers | None:
    """Return the values of a decoder's config.json under Llama's keys; None for a kind that `Llama` does not compute.

    Raises:
        UserError: the config is damaged.
    """
    text = half_of(config, "text_config")
    kind = renamed(text).get("model_type")
    if kind not in LLAMA_KINDS:
        return None
    settings = settings_of(text, check_keys=False)
    values = {"head_dim": settings.hidden_size // settings.num_attention_heads} | settings.to_dict()
    rope = values["rope_parameters"]
    values |= {"rope_theta": rope["rope_theta"], "rope_type": rope["rope_type"]}
    return values | {"partial_rotary_factor": rope.get("partial_rotary_factor", 1.0)} | LLAMA_KINDS[kind]


def llama_arguments(config: Numbers) -> Numbers:
    """Return the arguments of `Llama` for a config.json; {} for a kind that it does not compute."""
    values = llama_values(config)
    if values is None:
        return {}
    arguments = {name: values[key] for key, name in LLAMA.items() if name not in LLAMA_FIXED}
    if arguments["head_width"] == arguments["width"] // arguments["heads"]:
        del arguments["head_width"]  # the default
    return arguments


def compare_settings(config: Numbers, kind: str, settings: PretrainedConfig, *, by_file: bool) -> list[Difference]:
    """Compare the config.json of a decoder with `lit_mm.language.pretrained.Pretrained`.

    Args:
        config: the config.json, possibly of a multimodal model.
        kind: `model_type` in the recipe.
        settings: config of the part.
        by_file: True if the recipe names a config.json, False if it has the numbers themselves.
    Raises:
        UserError: the config is damaged, or the part cannot read its decoder.
    """
    advice = "set `config` to the folder of the weights" if by_file else ""
    text = half_of(config, "text_config")
    if renamed(text).get("model_type") != settings.model_type:
        argument = None if by_file else "config.model_type"
        return [Difference("model_type", text.get("model_type"), kind, argument, advice)]
    published = settings_of(text, check_keys=False)
    limit = limit_length(published)
    keys = {field.name for field in fields(settings)} - {field.name for field in fields(PretrainedConfig)} - UNUSED
    if limit is None and rope_kinds(published) | rope_kinds(settings) <= {"default", "linear", "llama3"}:
        keys -= {"max_position_embeddings", "original_max_position_embeddings"}  # information only
    names = {key: f"config.{key}" for key in sorted(keys) if not key.endswith(("dropout", "_pdrop"))}
    numbers = {names[key]: value for key, value in settings.to_dict().items() if key in names}
    by_argument = dict.fromkeys(names.values(), advice) if by_file else {}
    return compare_numbers(published.to_dict(), names, numbers, by_argument)


def rope_kinds(settings: PretrainedConfig) -> frozenset[str]:
    """Return the kinds of rotary positions of a decoder; "learned" stands for a table."""
    ropes = settings.to_dict().get("rope_parameters")
    if not ropes:
        return frozenset({"learned"})
    by_layer = ropes.values() if all(isinstance(value, dict) for value in ropes.values()) else [ropes]
    return frozenset(rope.get("rope_type", "default") for rope in by_layer)


def compare_t5(config: Numbers, numbers: Numbers) -> list[Difference]:
    """Compare the config.json of a T5 with `lit_mm.language.t5.T5`.

    The activation of the gate is not compared: BLIP-2 runs T5 with another one than it was trained with.

    Args:
        config: the config.json, possibly of a multimodal model.
        numbers: arguments of `T5`.
    Raises:
        UserError: the config is damaged.
    """
    text = half_of(config, "text_config")
    kind = text.get("model_type")
    if kind not in T5_KINDS:
        return [Difference("model_type", kind, "t5", advice="take another part for these weights")]
    return compare_numbers(t5_values(text), T5, numbers | T5_FIXED, dict.fromkeys(T5_FIXED, "T5 1.0 is not read"))


def with_known_keys(numbers: Numbers) -> Numbers:
    """Return the keys of a config.json that a recipe has in its place, after a check of their names.

    Raises:
        UserError: the kind is no T5, or it has no such key.
    """
    kind = numbers.get("model_type")
    if kind not in T5_KINDS:
        raise UserError(f"T5: `model_type` of `config` is {kind!r}; name one of {list(T5_KINDS)}")
    keys = CONFIG_MAPPING[kind]().to_dict().keys() | {"decoder_start_token_id"}
    if unknown := sorted(numbers.keys() - keys):
        raise UserError(f"the config of a {kind} has no keys {unknown}; it has {sorted(keys)}")
    return dict(numbers)


def t5_numbers(config: Numbers) -> Numbers:
    """Return the arguments of `lit_mm.language.t5.T5` for a config.json.

    Raises:
        UserError: transformers refuses the config.
    """
    values = t5_values(half_of(config, "text_config"))
    return {name: values[key] for key, name in T5.items() if name not in T5_FIXED}


def t5_values(text: Numbers) -> Numbers:
    """Return the values of a T5's config.json, with transformers' defaults.

    Raises:
        UserError: transformers refuses the config.
    """
    kind = text["model_type"]
    try:
        settings = CONFIG_MAPPING[kind](**without_type(text))
    except REFUSALS as error:
        raise UserError(f"transformers refuses the config of this {kind}: {error}") from error
    start = text.get("decoder_start_token_id")
    return settings.to_dict() | {
        "decoder_start_token_id": 0 if start is None else start,
        "tie_word_embeddings": text.get("scale_decoder_outputs", text.get("tie_word_embeddings", True)),
    }


def compare_vision(
    config: Numbers, numbers: Numbers, size_argument: str, *, advice: Mapping[str, str] | None = None
) -> list[Difference]:
    """Compare the config.json of a vision transformer with a part.

    Args:
        config: the config.json, possibly of a multimodal model.
        numbers: arguments of the part; "model_type" is there if it reads configs of one kind alone, and configs of
            unknown kinds are not compared if it is not.
        size_argument: argument that sets the image size of the checkpoint.
        advice: see `lit_mm.weights.agreement.compare_numbers`.
    Raises:
        UserError: the config is damaged.
    """
    kind, values = vision_values(config)
    if kind != numbers.get("model_type", kind):
        return [Difference("model_type", kind, numbers["model_type"], advice="take another part for these weights")]
    if values is None:
        return []
    return compare_numbers(values, VISION | {"image_size": size_argument}, numbers, advice)


def vision_values(config: Numbers) -> tuple[str | None, Numbers | None]:
    """Return kind and values of a vision transformer's config.json; None for the values of an unknown kind.

    Raises:
        UserError: the config is damaged.
    """
    vision = qwen_visual(config) if "visual" in config else half_of(config, "vision_config")
    kind = vision.get("model_type")
    if kind not in VISION_KINDS:
        return kind, None
    try:
        values = CONFIG_MAPPING[kind](**without_type(vision)).to_dict()
    except REFUSALS as error:
        raise UserError(f"transformers refuses the config of this {kind}: {error}") from error
    if kind == SIGLIP_KIND:  # pixels that fill no patch are not read: of 384 pixels and patches of 14, 378 are
        values["image_size"] -= values["image_size"] % values["patch_size"]
    return kind, values


def vit_arguments(config: Numbers) -> Numbers:
    """Return the arguments of `lit_mm.vision.vit.ViT` for a config.json; {} if it is of another kind."""
    kind, values = vision_values(config)
    if values is None or kind != VIT_KIND:
        return {}
    arguments = {name: values[key] for key, name in VISION.items()}
    if arguments["ffn_width"] == 4 * arguments["width"]:
        del arguments["ffn_width"]  # the default
    return arguments


def compare_bert(
    config: Numbers, numbers: Numbers, section: str, kinds: Collection[str], advice: Mapping[str, str]
) -> list[Difference]:
    """Compare the config.json of a BERT, of BLIP's text model or of a Q-Former with a part.

    The number of token ids is not compared: parts add rows for tokens of their own.

    Args:
        config: the config.json, possibly of a multimodal model.
        numbers: arguments of the part, and "activation".
        section: key of a multimodal model's config, "text_config" or "qformer_config".
        kinds: kinds whose weights the part reads.
        advice: see `lit_mm.weights.agreement.compare_numbers`.
    Raises:
        UserError: the config is damaged.
    """
    text = half_of(config, section)
    kind = text.get("model_type")
    if kind not in kinds:
        return [Difference("model_type", kind, " or ".join(kinds), advice="take another part for these weights")]
    try:
        values = CONFIG_MAPPING[kind](**without_type(text)).to_dict()
    except REFUSALS as error:
        raise UserError(f"transformers refuses the config of this {kind}: {error}") from error
    keys = {key: name for key, name in BERT.items() if key in values}
    if kind == "blip_text_model":
        keys.pop("encoder_hidden_size")  # the release writes 768, whatever the width of its vision encoder
    other = "take another part for these weights"
    return compare_numbers(values, keys, numbers, {"activation": other, **advice})


def compare_patches(config: Numbers, numbers: Numbers) -> list[Difference]:
    """Compare the config.json of a Fuyu with `lit_mm.vision.linear_patches.LinearPatches`.

    Args:
        config: the config.json.
        numbers: arguments of the part, and "channels".
    Raises:
        UserError: the config is damaged.
    """
    kind = config.get("model_type")
    if kind != "fuyu":
        return [Difference("model_type", kind, "fuyu", advice="take another part for these weights")]
    try:
        values = CONFIG_MAPPING[kind](**without_type(config)).to_dict()
    except REFUSALS as error:
        raise UserError(f"transformers refuses the config of this {kind}: {error}") from error
    values |= {"hidden_size": values["text_config"]["hidden_size"]}
    keys = {"patch_size": "patch", "hidden_size": "width", "num_channels": "channels"}
    return compare_numbers(values, keys, numbers, {"channels": "LinearPatches reads RGB alone"})


def compare_timm(config: Numbers, name: str, overrides: Numbers, numbers: Numbers) -> list[Difference]:
    """Compare the config.json that timm writes with `lit_mm.vision.timm_encoder.TimmEncoder`.

    Args:
        config: the config.json, with the key `architecture`.
        name: timm's name of the part's model, with or without a tag.
        overrides: arguments of timm's constructor that differ from those of the named model.
        numbers: names in `TIMM` -> value of the part.
    """
    if config["architecture"] != name.partition(".")[0]:
        return [Difference("architecture", config["architecture"], name.partition(".")[0], "name")]
    arguments = {key: value for key, value in config.get("model_args", {}).items() if not is_of_timm_head(key)}
    present = {key: value for key, value in overrides.items() if not is_of_timm_head(key)}
    published = arguments | {key: None for key in present.keys() - arguments.keys()}
    names = {key: f"overrides.{key}" for key in sorted(published)}
    settings = {f"overrides.{key}": _listed(present.get(key)) for key in published}
    differences = compare_numbers({key: _listed(value) for key, value in published.items()}, names, settings)
    data = config.get("pretrained_cfg", {})
    values = {key: _listed(data[key]) for key in ("mean", "std") if key in data}
    if "input_size" in data:
        values["input_size"] = data["input_size"][-1]
    advice = {key: "give `name` the tag of these weights" for key in ("mean", "std")}
    names = {key: next((n for n in sizes if n in numbers), "") for key, sizes in TIMM.items() if key in values}
    return differences + compare_numbers(values, names, numbers, advice)


def is_of_timm_head(argument: str) -> bool:
    """Return True for an argument of timm's constructor that changes no features of the part."""
    return argument.endswith("_rate") or argument in ("img_size", "in_chans", "num_classes", "global_pool")


def _listed(value: Any) -> Any:
    """Turn tuples into lists, as JSON does."""
    return list(value) if isinstance(value, tuple) else value


def qwen_visual(config: Mapping[str, Any]) -> Numbers:
    """Rename the section `visual` of Qwen-VL's config.json to the config of a CLIP encoder.

    Its position table has 16 x 16 rows, whatever its `image_size`. Activation and epsilon are constants of the release.

    Source: visual.py of the release, class VisionTransformer.
    """
    visual = config["visual"]
    return {
        "model_type": "clip_vision_model",
        "hidden_size": visual["width"],
        "num_hidden_layers": visual["layers"],
        "num_attention_heads": visual["heads"],
        "intermediate_size": int(visual["width"] * visual["mlp_ratio"]),
        "patch_size": visual["patch_size"],
        "image_size": 16 * visual["patch_size"],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    }
