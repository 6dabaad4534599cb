"""Sizes of language models and vision encoders as published configs give them, as arguments of our parts."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING, CLIPVisionConfig, SiglipVisionConfig, T5Config

from lit_mm.errors import UserError
from lit_mm.weights.config_file import REFUSALS, without_type
from lit_mm.weights.files import PART_FOLDERS
from lit_mm.weights.layouts.layout import Config, Described, require
from lit_mm.weights.stream import Stored

CLIP_HEAD = 64  # width of an attention head in every published CLIP
EVA_HEAD, EVA_RATIO = 88, 4.3637  # of EVA ViT-g: width of an attention head; feed-forward width / width
QFORMER_HEAD = 64  # width of an attention head in BERT
DECODERS = ("llama", "mistral")  # a `Llama` computes them
SIZES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size"),
    *("vocab_size", "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "tie_word_embeddings"),
)
# Keys of a config.json that a `Pretrained` is built from
SETTINGS = {
    "llama": (*SIZES, "attention_bias", "mlp_bias", "head_dim"),
    "mistral": (*SIZES, "head_dim", "sliding_window"),
    "mixtral": (*SIZES, "head_dim", "sliding_window", "num_local_experts", "num_experts_per_tok"),
    "gemma": (*SIZES, "head_dim", "attention_bias"),
    "qwen2": (*SIZES, "use_sliding_window", "sliding_window", "max_window_layers"),
    "opt": (
        *("hidden_size", "num_hidden_layers", "num_attention_heads", "ffn_dim", "word_embed_proj_dim", "vocab_size"),
        *("max_position_embeddings", "activation_function", "do_layer_norm_before", "dropout", "attention_dropout"),
        *("enable_bias", "layer_norm_elementwise_affine", "tie_word_embeddings"),
    ),
    "persimmon": (
        *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size", "hidden_act"),
        *("max_position_embeddings", "qk_layernorm", "rope_parameters", "layer_norm_eps", "hidden_dropout"),
        *("attention_dropout", "tie_word_embeddings"),
    ),
}
EVA_PATCHES, QUERIES = "patch_embed.proj.weight", "query_tokens"
EVA_BLOCK = re.compile(r"blocks\.(\d+)\.")
QLAYER = re.compile(r"Qformer\.bert\.encoder\.layer\.(\d+)\.(crossattention\.)?")
LAYER = re.compile(r"encoder\.layers\.(\d+)\.")
VICUNA = re.compile(r"vicuna.*?v([01])(?:\.\d)?(?!\d)", re.IGNORECASE)
CACHED = re.compile(r"models--.+--(.+)")  # folder of a published name in the hub's cache
VICUNA_0_ROWS = 32001
SEPARATORS = {"0": ", whose turns end with ###", "1": ".1 or later, whose turns end with </s>"}
TOKENIZERS = ("tokenizer.model", "tokenizer.json", "qwen.tiktoken", "vocab.json", "spiece.model", "vocab.txt")


def llama_part(config: Mapping[str, Any], kind: str = "llama") -> Config:
    """Build a `Llama` from a config of transformers; absent keys have the defaults of their class.

    Args:
        config: `config.json` of a language model, or the `text_config` of a multimodal one.
        kind: "llama" or "mistral".
    Raises:
        UserError: the config has scaled rotary positions, another activation or another kind of language model.
    """
    if kind not in DECODERS:
        raise UserError(f"a language model of model_type {kind!r} cannot be imported, only {', '.join(DECODERS)}")
    full = settings(config, kind)
    if full["hidden_act"] != "silu" or full.get("mlp_bias"):
        raise UserError(
            f"a {kind} with hidden_act {full['hidden_act']!r} and mlp_bias {full.get('mlp_bias')} cannot be imported; "
            "`Llama` has 'silu' and no such bias"
        )
    if scaled(full):
        kind_of_rope = full["rope_parameters"]["rope_type"]
        raise UserError(f"rotary positions of type {kind_of_rope!r} cannot be imported; `Llama` has plain ones")
    rope = full.get("rope_parameters") or {}
    sizes = {
        "width": full["hidden_size"],
        "layers": full["num_hidden_layers"],
        "heads": full["num_attention_heads"],
        "kv_heads": full["num_key_value_heads"],
        "ffn_width": full["intermediate_size"],
        "vocab_size": full["vocab_size"],
        "head_width": full.get("head_dim"),
        "rope_theta": float(rope.get("rope_theta") or full.get("rope_theta") or 10000.0),
        "norm_eps": full["rms_norm_eps"],
        "max_positions": full["max_position_embeddings"],
        "attention_bias": bool(full.get("attention_bias")),
        "tie_embeddings": bool(full.get("tie_word_embeddings")),
    }
    return {"class_path": "lit_mm.language.llama.Llama", "init_args": sizes}


def settings(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return all keys of a language model's config; absent ones have the defaults of their class in transformers.

    Raises:
        UserError: transformers refuses the config.
    """
    keys = {key: value for key, value in without_type(dict(config)).items() if key != "architectures"}
    try:
        return CONFIG_MAPPING[kind](**keys).to_dict()
    except REFUSALS as error:
        reason = " ".join(str(error).split())
        raise UserError(f"transformers refuses the config of this {kind}: {reason}") from error


def scaled(full: Mapping[str, Any]) -> bool:
    """Return True for rotary positions that are scaled."""
    return (full.get("rope_parameters") or {}).get("rope_type", "default") != "default"


def decoder_part(config: Mapping[str, Any], kind: str) -> Config:
    """Build the `language` section of a decoder: a `Llama` for Llama and Mistral with plain rotary positions, else a
    `Pretrained`.

    Args:
        config: `config.json` of a language model, or the `text_config` of a multimodal one.
        kind: model_type of the language model.
    Raises:
        UserError: the language model is of another kind, or has a value that cannot be imported.
    """
    plain = kind in DECODERS and not scaled(settings(config, kind))
    return llama_part(config, kind) if plain else pretrained_part({**config, "model_type": kind})


def pretrained_part(config: Mapping[str, Any]) -> Config:
    """Build the `language` section of a decoder that `Pretrained` runs; absent keys have the defaults of their class.

    Args:
        config: `config.json` of a decoder in `SETTINGS`, or the `text_config` of a multimodal model.
    Raises:
        UserError: the language model is of another kind.
    """
    kind = str(config.get("model_type"))
    if kind not in SETTINGS:
        raise UserError(f"a language model of model_type {kind!r} cannot be imported, only {', '.join(SETTINGS)}")
    full = settings(config, kind)
    numbers = {key: full[key] for key in SETTINGS[kind]}
    return component("lit_mm.language.pretrained.Pretrained", config={"model_type": kind} | numbers)


def sizes_of(language: Config) -> Config:
    """Return the longest sample of a `Llama` or `Pretrained`, and the arguments of its key map."""
    arguments = language["init_args"]
    numbers = arguments.get("config")
    if numbers is None:
        return {"max_positions": arguments["max_positions"], "model_type": "llama"}
    return {
        "max_positions": numbers["max_position_embeddings"],
        "model_type": numbers["model_type"],
        "heads": numbers["num_attention_heads"],
        "kv_heads": numbers["num_key_value_heads"],
    }


def language_part(config: Mapping[str, Any]) -> Config:
    """Build the `language` section of a Llama, a T5, or a decoder that `Pretrained` runs.

    Raises:
        UserError: the language model is of another kind, or has a value that cannot be imported.
    """
    kind = config.get("model_type")
    if kind == "t5":
        return t5_part(config)
    return decoder_part(config, kind) if kind in DECODERS else pretrained_part(config)


def t5_part(config: Mapping[str, Any]) -> Config:
    """Build the `language` section of an encoder-decoder from a config of transformers, with the defaults of its class.

    Args:
        config: `config.json` of a T5 v1.1 or Flan-T5, or the `text_config` of a multimodal model.
    Raises:
        UserError: the feed-forwards are not gated GELUs, or hidden states are scaled before the output projection.
    """
    full = T5Config(**{key: value for key, value in config.items() if key != "model_type"}).to_dict()
    if full["feed_forward_proj"] != "gated-gelu":
        raise UserError(f"a T5 with {full['feed_forward_proj']!r} feed-forwards cannot be imported, only 'gated-gelu'")
    if full["scale_decoder_outputs"]:
        raise UserError(
            "a T5 that scales its hidden states before the output projection cannot be imported: its config has "
            f"tie_word_embeddings {config.get('tie_word_embeddings')}, and `T5` has the one of Flan-T5, false"
        )
    sizes = {
        "width": full["d_model"],
        "layers": full["num_layers"],
        "heads": full["num_heads"],
        "ffn_width": full["d_ff"],
        "vocab_size": full["vocab_size"],
        "decoder_layers": full["num_decoder_layers"],
        "head_width": full["d_kv"],
        "dropout": full["dropout_rate"],
        "activation": config.get("dense_act_fn", "gelu_new"),
        "buckets": full["relative_attention_num_buckets"],
        "max_distance": full["relative_attention_max_distance"],
        "norm_eps": full["layer_norm_epsilon"],
        "start_id": config.get("decoder_start_token_id", 0),
    }
    return {"class_path": "lit_mm.language.t5.T5", "init_args": sizes}


def clip_part(described: Described, select_layer: int, drop_cls: bool = True) -> Config:
    """Build the `vision` section of a CLIP encoder.

    Sizes come from `vision_config`, from the config beside the encoder that `--with vision=` names, or from the shapes
    of the encoder in the checkpoint. The shapes do not show the number of heads; there, each head has 64 channels, as
    in every published CLIP.

    Raises:
        UserError: nothing gives the sizes.
    """
    source = described.parts.get("vision", described)
    config = source.config.get("vision_config")
    if config is None and source.config.get("model_type") == "clip_vision_model":
        config = source.config
    kind = (config or {}).get("model_type", "clip_vision_model")
    patched = source.shape("embeddings.patch_embedding.weight") is not None
    if kind != "clip_vision_model" or (patched and source.shape("embeddings.class_embedding") is None):
        raise UserError(
            f"{str(source.folder)!r} has a vision encoder of model_type {kind!r}"
            + ("" if kind != "clip_vision_model" else " without class_embedding")
            + ", and only CLIP can be imported here"
        )
    if config is not None:
        full = CLIPVisionConfig(**{key: value for key, value in config.items() if key != "model_type"}).to_dict()
    else:
        patches = source.shape("embeddings.patch_embedding.weight")
        table = source.shape("embeddings.position_embedding.weight")
        ffn = source.shape("encoder.layers.0.mlp.fc1.weight")
        if patches is None or table is None or ffn is None:
            name = described.config.get("mm_vision_tower", "openai/clip-vit-large-patch14-336")
            if "vision" in described.parts:
                raise UserError(f"--with vision={str(source.folder)!r} has no tensors of CLIP; expected {name}")
            raise UserError(
                f"{str(described.folder)!r} has no vision encoder, which is {name}. Add --with vision={name}, or "
                "a folder or file of it"
            )
        full = {
            "image_size": round((table[0] - 1) ** 0.5) * patches[2],
            "patch_size": patches[2],
            "hidden_size": patches[0],
            "num_hidden_layers": 1 + max(int(match[1]) for name in source.stored if (match := LAYER.search(name))),
            "num_attention_heads": patches[0] // CLIP_HEAD,
            "intermediate_size": ffn[0],
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        }
    sizes = {
        "image_size": full["image_size"],
        "patch": full["patch_size"],
        "width": full["hidden_size"],
        "layers": full["num_hidden_layers"],
        "heads": full["num_attention_heads"],
        "ffn_width": full["intermediate_size"],
        "activation": full["hidden_act"],
        "eps": full["layer_norm_eps"],
        "select_layer": select_layer,
        "drop_cls": drop_cls,
    }
    return {"class_path": "lit_mm.vision.vit.ViT", "init_args": sizes}


def siglip_part(described: Described, select_layer: int) -> Config:
    """Build the `vision` section of a SigLIP of transformers. It has no class token.

    Its convolution reads no pixels at the bottom and on the right that fill no patch: views have the size of its
    patches, 378 pixels for the 384 of the published ones, and the tiling cuts the rest off.

    Args:
        described: files of the encoder.
        select_layer: index of the block whose output is returned.
    Raises:
        UserError: the config has a value that cannot be imported.
    """
    config = described.config
    require(described, config, {"hidden_act": ("gelu_pytorch_tanh",), "num_channels": (3,)})
    full = SiglipVisionConfig(**without_type(config)).to_dict()
    width, patch = full["hidden_size"], full["patch_size"]
    return component(
        "lit_mm.vision.timm_encoder.TimmEncoder",
        name="vit_so400m_patch14_siglip_378",
        image_size=full["image_size"] - full["image_size"] % patch,
        select_layer=select_layer,
        eps=full["layer_norm_eps"],
        overrides={
            "patch_size": patch,
            "embed_dim": width,
            "depth": full["num_hidden_layers"],
            "num_heads": full["num_attention_heads"],
            "mlp_ratio": (full["intermediate_size"] + 0.5) / width,  # timm rounds the product down
            "act_layer": "gelu_tanh",  # the tanh form, as transformers; the named model has the exact one
        },
    )


def eva_part(stored: Mapping[str, Stored], *, cut: bool, drop_cls: bool = False) -> Config:
    """Build the `vision` section of EVA ViT-g, whose last block is not read. The number of heads is the published one.

    Args:
        stored: shapes of the encoder's tensors under the names of its authors.
        cut: True if the last block is not in the files.
        drop_cls: True for an encoder without its class token.
    """
    width, _, patch, _ = stored[EVA_PATCHES].shape
    ffn = stored["blocks.0.mlp.fc1.weight"].shape[0]
    blocks = 1 + max(int(match[1]) for name in stored if (match := EVA_BLOCK.match(name)))
    return component(
        "lit_mm.vision.timm_encoder.TimmEncoder",
        name="eva_giant_patch14_clip_224",
        image_size=math.isqrt(stored["pos_embed"].shape[1] - 1) * patch,
        select_layer=-2,
        drop_cls=drop_cls,
        overrides={
            "patch_size": patch,
            "embed_dim": width,
            "depth": blocks + cut,
            "num_heads": width // EVA_HEAD,
            "mlp_ratio": EVA_RATIO if int(width * EVA_RATIO) == ffn else ffn / width,
        },
    )


def qformer_sizes(stored: Mapping[str, Stored]) -> Config:
    """Return the arguments of a `QFormer` for tensors in the names of LAVIS; heads have the width of BERT's."""
    _, queries, width = stored[QUERIES].shape
    matches = [match for name in stored if (match := QLAYER.match(name))]
    layers = 1 + max(int(match[1]) for match in matches)
    return {
        "queries": queries,
        "width": width,
        "layers": layers,
        "heads": width // QFORMER_HEAD,
        "ffn_width": stored["Qformer.bert.encoder.layer.0.intermediate_query.dense.weight"].shape[0],
        "cross_every": layers // len({match[1] for match in matches if match[2]}),
    }


def names_of(described: Described) -> list[str]:
    """Return the names of a checkpoint: that in its config, and that of its folder.

    In the hub's cache a folder has the hash of a version, so the published name takes its place.
    """
    folder = described.folder.absolute()
    cached = [match[1] for parent in folder.parents if (match := CACHED.fullmatch(parent.name))]
    return [str(described.config.get("_name_or_path") or ""), *(cached[:1] or [folder.name])]


def vicuna_version(language: Described) -> str | None:
    """Return the version of a Vicuna, "0" or "1" for 1.1 to 1.5, by its name or its rows; None if they do not tell.

    Version 0 has 32001 rows, for a padding token, and separates turns by ###; the later ones have 32000 and </s>.
    """
    actual = next((match[1] for name in names_of(language) if (match := VICUNA.search(name))), None)
    padded = language.config.get("vocab_size") == VICUNA_0_ROWS
    return "0" if actual is None and padded and language.json("added_tokens.json").keys() <= {"[PAD]"} else actual


def require_vicuna(language: Described, version: str) -> None:
    """Refuse a Vicuna of another version, where its name or its files tell, see `vicuna_version`.

    Args:
        language: files of the language model.
        version: "0", or "1" for versions 1.1 to 1.5.
    Raises:
        UserError: it is another version.
    """
    actual = vicuna_version(language)
    if actual not in (None, version):
        raise UserError(
            f"{str(language.folder)!r} is Vicuna version {actual}, by its name or its "
            f"{language.config.get('vocab_size')} rows, but the checkpoint was trained with version "
            f"{version}{SEPARATORS[version]}. Name that version with --with language=PLACE"
        )


def component(class_path: str, **arguments: Any) -> Config:
    """Build the section of a tiling, layout, prompt or part."""
    return {"class_path": class_path} | ({"init_args": arguments} if arguments else {})


def tokenizer(described: Described, published: str = "lmsys/vicuna-7b-v1.5") -> str:
    """Return the folder of the tokenizer: the one that `--with tokenizer=` names, the checkpoint's, that of the
    language model that `--with language=` names, or that of the language model in a folder of the checkpoint.

    Args:
        published: a published name of such a tokenizer, for the error.
    Raises:
        UserError: none of them has the files of a tokenizer.
    """
    parts = described.parts
    sources = [source.folder for source in (parts.get("tokenizer"), described, parts.get("language")) if source]
    for folder in (*sources, described.folder / PART_FOLDERS[0]):
        if any((folder / name).is_file() for name in TOKENIZERS):
            return str(folder.absolute())
    raise UserError(
        f"{str(described.folder)!r} has no tokenizer ({' or '.join(TOKENIZERS)}). Name the one of its language model "
        f"with --with tokenizer=PLACE, such as {published}, or the language model with --with language=PLACE if the "
        "checkpoint lacks that, too"
    )
