"""Layouts of LLaVA, LLaVA-1.5 and LLaVA-NeXT: the authors' and that of transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from transformers import CONFIG_MAPPING

from lit_mm.errors import UserError
from lit_mm.weights.decoders import decoder_to_pretrained
from lit_mm.weights.internlm2 import llama_to_llama
from lit_mm.weights.layouts.chats import CHAT, LLAVA, chat_arguments, language_kind
from lit_mm.weights.layouts.layout import Config, Described, Layout, State, require
from lit_mm.weights.layouts.sizes import (
    clip_part,
    component,
    decoder_part,
    require_vicuna,
    sizes_of,
    tokenizer,
    vicuna_version,
)
from lit_mm.weights.llava import hf_llava_to_model, llava_to_model
from lit_mm.weights.llava_next import hf_llava_next_to_model, llava_next_to_model

LINEAR, MLP, NEWLINE = "model.mm_projector.weight", "model.mm_projector.0.weight", "model.image_newline"
TOWER = "model.vision_tower.vision_tower.vision_model."
HEAD, TABLE = "lm_head.weight", "embed_tokens.weight"
AUTHORS = ("llava", "llava_llama", "llava_mistral", "llava_mixtral", "llava_gemma", "llava_qwen")
OUTER = ("mm_", "image_", "tune_", "freeze_")  # beginnings of the keys of a config that are not the language model's
STAGE = {
    "connector": {"lr": 2e-5, "weight_decay": 0.0},
    "language": {"lr": 2e-5, "weight_decay": 0.0},
}
STAGE_NEXT = {"vision": {"lr": 2e-6, "weight_decay": 0.0}, "newline": {"lr": 2e-5, "weight_decay": 0.0}} | STAGE
SEPARATE = {"vision": ("clip", "mm_vision_tower"), "language": ("language", "_name_or_path")}


def is_authors(described: Described) -> bool:
    """Return True for a checkpoint, projector or LoRA of the authors, and for no family that extends theirs."""
    kind = described.config.get("model_type", "llava")
    names = described.config.get("architectures") or []
    extended = any(".mm_projector.attn" in name or "vlm_uni_" in name for name in described.stored)
    return kind in AUTHORS and not extended and not any("Llava" not in name for name in names)


def is_llava(described: Described) -> bool:
    """Return True for a linear projector."""
    return is_authors(described) and LINEAR in described.stored


def is_llava_1_5(described: Described) -> bool:
    """Return True for an MLP projector without a newline vector."""
    anyres = str(described.config.get("image_aspect_ratio", "pad")).startswith("anyres")
    return is_authors(described) and MLP in described.stored and NEWLINE not in described.stored and not anyres


def is_llava_next(described: Described) -> bool:
    """Return True for an MLP projector with a newline vector."""
    return is_authors(described) and MLP in described.stored and NEWLINE in described.stored


def is_hf(described: Described, kind: str) -> bool:
    """Return True for a checkpoint of transformers; its projector has another name than that of the authors."""
    projector = any("multi_modal_projector." in name for name in described.stored)
    return described.config.get("model_type") == kind and projector


def authors_parts(described: Described, templates: Mapping[str, str] = LLAVA) -> tuple[Config, Config, Config]:
    """Return the sections `vision` and `language`, and the arguments of the prompt, of a checkpoint of the authors.

    Args:
        templates: see `chat_of`.
    Raises:
        UserError: a part has no sizes, the config has a value that cannot be imported, or the language model is Vicuna
            version 0.
    """
    config = described.config
    require(described, config, {"mm_use_im_start_end": (False,), "mm_vision_select_feature": ("patch",)})
    language = config if "hidden_size" in config else described.parts.get("language", described).config
    if "hidden_size" not in language:
        source = described.parts.get("language", described)
        if "language" in described.parts or any(name.endswith(TABLE) for name in described.stored):
            raise UserError(f"{str(source.folder / 'config.json')!r} lacks hidden_size, or is not there. Copy it there")
        name = config.get("_name_or_path") or "lmsys/vicuna-7b-v1.5"
        raise UserError(
            f"{str(described.folder)!r} has no language model, which is {name}. Add --with language={name}, "
            "or a folder of it"
        )
    layer = config.get("mm_vision_select_layer", -2)
    kind = language_kind(described)
    decoder = decoder_part({key: value for key, value in language.items() if not key.startswith(OUTER)}, kind)
    if "language" in described.parts:
        require_vicuna(described.parts["language"], "1")
    elif vicuna_version(described) == "0" and described.template is None:
        raise UserError(
            f"{str(described.folder)!r} is a Vicuna of version 0, by its name or its number of rows. Its "
            "turns end with ###, which no template writes. --template NAME imports it with another template, "
            "such as vicuna_v1"
        )
    return clip_part(described, layer), decoder, chat_arguments(described, kind, templates)


def authors_model(family: str, described: Described) -> Config:
    """Build the `model` section of LLaVA or LLaVA-1.5 from the authors' files. `image_aspect_ratio` absent: crop."""
    vision, language, chat = authors_parts(described)
    side = vision["init_args"]["image_size"]
    pads = described.config.get("image_aspect_ratio", "pad" if family == "Llava15" else "square") == "pad"
    connector = "linear.linear_projector" if LINEAR in described.stored else "mlp.MLPProjector"
    return {
        "class_path": f"lit_mm.families.{family}",
        "init_args": {
            "vision": vision,
            "language": language,
            "tokenizer": tokenizer(described),
            "image_size": side,
            "connector": f"lit_mm.connectors.{connector}",
            "inputs": {
                "tiling": component(f"lit_mm.tiling.{'Pad' if pads else 'CentreCrop'}", size=side),
                "prompt": component(CHAT, **chat),
                "max_length": min(sizes_of(language)["max_positions"], 4096),
            },
        },
    }


def next_model(vision: Config, language: Config, chat: Config, described: Described, rule: str) -> Config:
    """Build the `model` section of LLaVA-NeXT.

    The list `image_grid_pinpoints` is read as (width, height) pairs under both rules; the tiling swaps them for "hf".
    """
    side = vision["init_args"]["image_size"]
    pins = described.config.get("image_grid_pinpoints") or []
    if not isinstance(pins, list) or any(value % side for pin in pins for value in pin):
        raise UserError(f"{str(described.folder)!r}: image_grid_pinpoints {pins!r} are no multiples of {side} pixels")
    grids = {"grids": [[high // side, wide // side] for wide, high in pins]} if pins else {}
    return {
        "class_path": "lit_mm.families.LlavaNext",
        "init_args": {
            "vision": vision,
            "language": language,
            "tokenizer": tokenizer(described),
            "image_size": side,
            "inputs": {
                "tiling": component("lit_mm.tiling.AnyRes", tile=side, rule=rule, **grids),
                "layout": component("lit_mm.samples.BaseThenUnpaddedRows", rule=rule),
                "prompt": component(CHAT, **chat, keep_leading=True),
                "max_length": min(sizes_of(language)["max_positions"], 4096),
            },
        },
    }


def authors_next(described: Described) -> Config:
    require(described, described.config, {"mm_patch_merge_type": ("spatial_unpad",), "image_aspect_ratio": ("anyres",)})
    return next_model(*authors_parts(described), described, "official")


def hf_parts(described: Described) -> tuple[Config, Config, Config]:
    """Return the sections `vision` and `language`, and the arguments of the prompt, of a checkpoint of transformers.

    Raises:
        UserError: the config has a value that cannot be imported.
    """
    config = described.config
    require(
        described,
        config,
        {
            "vision_feature_select_strategy": ("default",),
            "projector_hidden_act": ("gelu",),
            "multimodal_projector_bias": (True,),
        },
    )
    kind = language_kind(described)
    text, layer = config["text_config"], config.get("vision_feature_layer", -2)
    if "vision_config" not in config or not isinstance(layer, int):
        raise UserError(
            f"{str(described.folder / 'config.json')!r} lacks vision_config, or its vision_feature_layer {layer!r} is "
            "no whole number"
        )
    return clip_part(described, layer), decoder_part(text, kind), chat_arguments(described, kind)


def hf_llava(described: Described) -> Config:
    """Build the `model` section of LLaVA-1.5 from a converted checkpoint. Its preprocessor says if images are padded.

    Raises:
        UserError: the preprocessor is of another size, or neither pads nor crops.
    """
    vision, language, chat = hf_parts(described)
    side = vision["init_args"]["image_size"]
    processor = described.image_processor
    pads = processor.get("do_pad", False)
    size = processor.get("crop_size", {"height": side})
    height = size["height"] if isinstance(size, dict) else size
    if height != side or not (pads or processor.get("do_center_crop", True)):
        raise UserError(
            f"{str(described.folder / 'preprocessor_config.json')!r} makes images of {height} pixels with do_pad "
            f"{pads}, do_center_crop {processor.get('do_center_crop')}; the vision encoder reads {side} x {side}"
        )
    return {
        "class_path": "lit_mm.families.Llava15",
        "init_args": {
            "vision": vision,
            "language": language,
            "tokenizer": tokenizer(described),
            "image_size": side,
            "inputs": {
                "tiling": component(f"lit_mm.tiling.{'Pad' if pads else 'CentreCrop'}", size=side),
                "prompt": component(CHAT, **chat),
                "max_length": min(sizes_of(language)["max_positions"], 4096),
            },
        },
    }


def hf_next(described: Described) -> Config:
    return next_model(*hf_parts(described), described, "hf")


def decoder_map(model: Config) -> Callable[[State], State]:
    """Return the key map of a recipe's language model, a `Llama` or a `Pretrained`."""
    sizes = sizes_of(model["init_args"]["language"])
    if sizes["model_type"] == "llama":
        return llama_to_llama
    return partial(decoder_to_pretrained, **{key: sizes[key] for key in ("model_type", "heads", "kv_heads")})


def with_decoder(rename: Callable[..., State]) -> Callable[[State, Config], State]:
    """Turn a key map around a language model of any kind into that of a layout."""
    return lambda state, model: rename(state, decoder=decoder_map(model))


def tied(described: Described) -> dict[str, str]:
    """Name the output projection that repeats the embeddings, in files of a language model that ties them."""
    config = described.config.get("text_config") or described.config
    kind = language_kind(described)
    ties = kind in CONFIG_MAPPING and config.get("tie_word_embeddings", CONFIG_MAPPING[kind]().tie_word_embeddings)
    head, table = (next((n for n in described.stored if n.endswith(end)), None) for end in (HEAD, TABLE))
    return {head: table} if ties and head and table else {}


def without_sizes(rename: Callable[[State], State]) -> Callable[[State, Config], State]:
    """Turn a key map that needs no sizes into that of a layout."""
    return lambda state, model: rename(state)


LAYOUTS = (
    Layout(
        "llava/authors",
        "liuhaotian/llava-v1-0719-336px-lora-merge-vicuna-13b-v1.3",
        is_llava,
        lambda described: authors_model("Llava", described),
        with_decoder(llava_to_model),
        STAGE,
        SEPARATE,
        copies=tied,
    ),
    Layout(
        "llava_1_5/authors",
        "liuhaotian/llava-v1.5-7b",
        is_llava_1_5,
        lambda described: authors_model("Llava15", described),
        with_decoder(llava_to_model),
        STAGE,
        SEPARATE,
        copies=tied,
    ),
    Layout(
        "llava_1_5/hf",
        "llava-hf/llava-1.5-7b-hf",
        lambda described: is_hf(described, "llava"),
        hf_llava,
        with_decoder(hf_llava_to_model),
        STAGE,
        in_transformers=True,
        copies=tied,
    ),
    Layout(
        "llava_next/authors",
        "liuhaotian/llava-v1.6-vicuna-7b",
        is_llava_next,
        authors_next,
        with_decoder(llava_next_to_model),
        STAGE_NEXT,
        SEPARATE,
        copies=tied,
    ),
    Layout(
        "llava_next/hf",
        "llava-hf/llava-v1.6-vicuna-7b-hf",
        lambda described: is_hf(described, "llava_next"),
        hf_next,
        with_decoder(hf_llava_next_to_model),
        STAGE_NEXT,
        in_transformers=True,
        copies=tied,
    ),
)
