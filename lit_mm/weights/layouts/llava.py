"""Layouts of LLaVA, LLaVA-1.5 and LLaVA-NeXT: the authors' and that of transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lit_mm.errors import UserError
from lit_mm.weights.files import read_json
from lit_mm.weights.layouts.layout import Config, Described, Layout, State, require
from lit_mm.weights.layouts.sizes import clip_part, component, llama_part, require_vicuna, tokenizer
from lit_mm.weights.llava import hf_llava_to_model, llava_to_model
from lit_mm.weights.llava_next import hf_llava_next_to_model, llava_next_to_model

LINEAR, MLP, NEWLINE = "model.mm_projector.weight", "model.mm_projector.0.weight", "model.image_newline"
TOWER = "model.vision_tower.vision_tower.vision_model."
START, END = "<|im_start|>", "<|im_end|>"  # markers of ChatML
AUTHORS = ("llava", "llava_llama", "llava_mistral")
STAGE = {
    "connector": {"lr": 2e-5, "weight_decay": 0.0},
    "language": {"lr": 2e-5, "weight_decay": 0.0},
}
STAGE_NEXT = {"vision": {"lr": 2e-6, "weight_decay": 0.0}, "newline": {"lr": 2e-5, "weight_decay": 0.0}} | STAGE
SEPARATE = {"vision": ("clip", "mm_vision_tower"), "language": ("llama", "_name_or_path")}


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


def authors_parts(described: Described) -> tuple[Config, Config, Config]:
    """Return the sections `vision` and `language`, and the arguments of the prompt, of a checkpoint of the authors.

    Raises:
        UserError: a part has no sizes, or the config has a value that cannot be imported.
    """
    config = described.config
    require(described, config, {"mm_use_im_start_end": (False,), "mm_vision_select_feature": ("patch",)})
    language = config if "hidden_size" in config else described.parts.get("language", described).config
    if "hidden_size" not in language:
        name = config.get("_name_or_path") or "lmsys/vicuna-7b-v1.5"
        raise UserError(
            f"{str(described.folder)!r} has no language model; {name} belongs there. Add --with language={name}, or a "
            "folder of it"
        )
    layer = config.get("mm_vision_select_layer", -2)
    mistral = config.get("model_type") == "llava_mistral" or language.get("model_type") == "mistral"
    keys = {key: value for key, value in language.items() if not key.startswith(("mm_", "image_", "tune_", "freeze_"))}
    decoder = llama_part(keys, "mistral" if mistral else "llama")
    if "language" in described.parts:
        require_vicuna(described.parts["language"], "1")
    return clip_part(described, layer), decoder, chat_of(described, mistral)


def chat_of(described: Described, mistral: bool) -> Config:
    """Choose the arguments of `ChatPrompt`. The end-of-sequence token, or the chat template, shows ChatML, the template
    of Nous-Hermes-2-Yi-34B.

    Raises:
        UserError: there is no tokenizer.
    """
    folder = Path(tokenizer(described))
    settings = read_json(folder, "tokenizer_config.json")
    end = settings.get("eos_token") or read_json(folder, "special_tokens_map.json").get("eos_token")
    texts = [read_json(folder, name).get("chat_template") for name in ("tokenizer_config.json", "chat_template.json")]
    texts += [file.read_text() for file in (folder / "chat_template.jinja",) if file.is_file()]
    chatml = END in str(end) or any(START in str(text) for text in texts)
    no_bos = {"bos": False} if settings.get("add_bos_token") is False else {}
    return {"template": "mistral_instruct" if mistral else "chatml_direct" if chatml else "vicuna_v1", **no_bos}


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
                "prompt": component("lit_mm.prompts.llava.ChatPrompt", **chat),
                "max_length": min(language["init_args"]["max_positions"], 4096),
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
                "prompt": component("lit_mm.prompts.llava.ChatPrompt", **chat, keep_leading=True),
                "max_length": min(language["init_args"]["max_positions"], 4096),
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
    text = config.get("text_config") or {}
    kind = text.get("model_type", "llama")
    vision = clip_part(described, config.get("vision_feature_layer", -2))
    return vision, llama_part(text, kind), chat_of(described, kind == "mistral")


def hf_llava(described: Described) -> Config:
    """Build the `model` section of LLaVA-1.5 from a converted checkpoint. Its preprocessor says if images are padded.

    Raises:
        UserError: the preprocessor is of another size, or neither pads nor crops.
    """
    vision, language, chat = hf_parts(described)
    side = vision["init_args"]["image_size"]
    processor = described.json("preprocessor_config.json") or described.json("processor_config.json").get(
        "image_processor", {}
    )
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
                "prompt": component("lit_mm.prompts.llava.ChatPrompt", **chat),
                "max_length": min(language["init_args"]["max_positions"], 4096),
            },
        },
    }


def hf_next(described: Described) -> Config:
    return next_model(*hf_parts(described), described, "hf")


def without_sizes(rename: Callable[[State], State]) -> Callable[[State, Config], State]:
    """Turn a key map that needs no sizes into that of a layout."""
    return lambda state, model: rename(state)


LAYOUTS = (
    Layout(
        "llava/authors",
        "liuhaotian/llava-v1-0719-336px-lora-merge-vicuna-13b-v1.3",
        is_llava,
        lambda described: authors_model("Llava", described),
        without_sizes(llava_to_model),
        STAGE,
        SEPARATE,
    ),
    Layout(
        "llava_1_5/authors",
        "liuhaotian/llava-v1.5-7b",
        is_llava_1_5,
        lambda described: authors_model("Llava15", described),
        without_sizes(llava_to_model),
        STAGE,
        SEPARATE,
    ),
    Layout(
        "llava_1_5/hf",
        "llava-hf/llava-1.5-7b-hf",
        lambda described: is_hf(described, "llava"),
        hf_llava,
        without_sizes(hf_llava_to_model),
        STAGE,
        in_transformers=True,
    ),
    Layout(
        "llava_next/authors",
        "liuhaotian/llava-v1.6-vicuna-7b",
        is_llava_next,
        authors_next,
        without_sizes(llava_next_to_model),
        STAGE_NEXT,
        SEPARATE,
    ),
    Layout(
        "llava_next/hf",
        "llava-hf/llava-v1.6-vicuna-7b-hf",
        lambda described: is_hf(described, "llava_next"),
        hf_next,
        without_sizes(hf_llava_next_to_model),
        STAGE_NEXT,
        in_transformers=True,
    ),
)
