"""LLaVA-1.5 and LLaVA-NeXT in the layouts of transformers and of the authors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaConfig,
    LlavaNextConfig,
    PretrainedConfig,
)

from lit_mm.commands.conversions.conversion import (
    Conversion,
    Files,
    grown,
    id_of,
    pixel_keys,
    rows_with,
    tensors_of_transformers,
    text_config,
)
from lit_mm.errors import UserError
from lit_mm.module import MultimodalModule
from lit_mm.prompts.llava import PLACEHOLDER, ChatPrompt
from lit_mm.samples.layout import BaseThenUnpaddedRows, InOrder
from lit_mm.samples.processor import Processor
from lit_mm.tiling.anyres import AnyRes
from lit_mm.tiling.square import CentreCrop, Pad
from lit_mm.vision.vit import ViT
from lit_mm.weights.layouts.llava import LINEAR, NEWLINE, TOWER
from lit_mm.weights.source import places_of
from lit_mm.weights.stream import Stored

MODELS = {"llama": "llava", "mistral": "llava_mistral"}  # model_type of the language model -> of the authors' files
CLASSES = {"llama": "LlavaLlamaForCausalLM", "mistral": "LlavaMistralForCausalLM"}
# Names in transformers today -> in the published files, which every version reads
PUBLISHED = {
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.": "",
}
# Side of the images and of a patch in pixels, width, layers, heads, feed-forward width, activation -> published name
CLIPS = {
    (224, 32, 768, 12, 12, 3072, "quick_gelu"): "openai/clip-vit-base-patch32",
    (224, 16, 768, 12, 12, 3072, "quick_gelu"): "openai/clip-vit-base-patch16",
    (224, 14, 1024, 24, 16, 4096, "quick_gelu"): "openai/clip-vit-large-patch14",
    (336, 14, 1024, 24, 16, 4096, "quick_gelu"): "openai/clip-vit-large-patch14-336",
    (224, 14, 1024, 24, 16, 4096, "gelu"): "laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
    (224, 14, 1280, 32, 16, 5120, "gelu"): "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    (224, 14, 1664, 48, 16, 8192, "gelu"): "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
}
CLIP_EPSILON = 1e-5  # of every published CLIP
HF, AUTHORS, AUTHORS_NEXT = "float16", "float16", "bfloat16"  # dtypes of the published files


def clip_config(module: MultimodalModule) -> CLIPVisionConfig:
    """Build the config of the vision encoder.

    Raises:
        UserError: it is no CLIP, or one whose class token is kept.
    """
    vision = module.network.vision
    if not isinstance(vision, ViT) or not vision.drop_cls or vision.cls is None or vision.position_size is not None:
        raise UserError(
            f"this layout holds the vision encoder of CLIP without its class token, at its own image size; the run has "
            f"a {type(vision).__name__}"
        )
    return CLIPVisionConfig(
        image_size=vision.image_size,
        patch_size=vision.patch,
        hidden_size=vision.width,
        num_hidden_layers=vision.published_layers,
        num_attention_heads=vision.heads,
        intermediate_size=vision.ffn_width,
        hidden_act=vision.activation,
        layer_norm_eps=vision.eps,
        projection_dim=vision.width,
    )


def layer_of(module: MultimodalModule) -> int:
    """Return the number of the layer that gives the features, from the end: -2 is the one before the last."""
    return module.network.vision.num_layers - module.network.vision.published_layers - 1


def outside(names: list[str], layers: int, prefix: str) -> dict[str, tuple[str, str]]:
    """Find the tensors of CLIP behind the features, which no run holds.

    Args:
        names: published names.
        layers: number of layers that the run has.
        prefix: beginning of the encoder's names.
    """
    inner = {name: name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    unread = {
        name: rest
        for name, rest in inner.items()
        if rest.startswith("post_layernorm.")
        or (rest.startswith("encoder.layers.") and int(rest.split(".")[2]) >= layers)
    }
    return {name: ("vision", rest) for name, rest in unread.items()}


def pixels(processor: Processor, side: int, more: dict[str, Any]) -> str:
    """Write preprocessor_config.json for views of `side` x `side` pixels."""
    sizes = {"crop_size": {"height": side, "width": side}, "size": {"shortest_edge": side}, "do_center_crop": True}
    return json.dumps(sizes | pixel_keys(processor) | more, indent=1)


def hf_files(
    module: MultimodalModule, side: int, kind: type[PretrainedConfig], more: dict[str, Any], image: dict[str, Any]
) -> Files:
    """Describe the files of transformers.

    Args:
        side: side of the views, pixels.
        kind: class of the config.
        more: arguments of the config that its family adds.
        image: keys of preprocessor_config.json that its family sets.
    """
    vision, text = clip_config(module), text_config(module, MODELS)
    if vision.image_size != side:
        raise UserError(f"the tiling makes views of {side} pixels, and the vision encoder reads {vision.image_size}")
    rows, token_id = text.vocab_size, id_of(PLACEHOLDER, module)
    text.vocab_size = rows_with(token_id, rows)
    settings = {
        "vision_config": vision,
        "text_config": text,
        "image_token_index": token_id,
        "vision_feature_layer": layer_of(module),
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": text.tie_word_embeddings,
    }
    config = kind(**(settings | more))
    tensors = tensors_of_transformers(config, HF, rows, PUBLISHED)
    name = f"{kind.__name__.removesuffix('Config')}"
    processor = {
        "processor_class": f"{name}Processor",
        "image_token": PLACEHOLDER,
        "patch_size": vision.patch_size,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,  # the class token
    }
    texts = {
        "preprocessor_config.json": pixels(
            module.processor, vision.image_size, {"processor_class": f"{name}Processor"} | image
        ),
        "processor_config.json": json.dumps(processor, indent=1),
    }
    return Files(
        config.to_dict() | {"architectures": [f"{name}ForConditionalGeneration"], "dtype": HF},
        tensors,
        grown(tensors, text.vocab_size),
        outside(list(tensors), module.network.vision.num_layers, PUBLISHED["model.vision_tower."]),
        PLACEHOLDER,
        texts,
        chat=module.processor.prompt.jinja if isinstance(module.processor.prompt, ChatPrompt) else None,
    )


def hf_1_5(module: MultimodalModule) -> Files:
    """Describe LLaVA-1.5 for transformers.

    Raises:
        UserError: the inputs of the model are none that transformers' processor makes.
    """
    tiling, layout = module.processor.tiling, module.processor.layout
    if not isinstance(tiling, Pad | CentreCrop) or not isinstance(layout, InOrder):
        raise UserError(f"transformers' LLaVA pads or crops one view of an image; the run has {tiling} and {layout}")
    padded = isinstance(tiling, Pad)
    kind = "LlavaImageProcessor" if padded else "CLIPImageProcessor"
    return hf_files(module, tiling.size, LlavaConfig, {}, {"image_processor_type": kind, "do_pad": padded})


def hf_next(module: MultimodalModule) -> Files:
    """Describe LLaVA-NeXT for transformers.

    transformers reads `image_grid_pinpoints` as (height, width), the authors as (width, height). The list is written so
    that transformers takes the same grid, on ties, too.

    Raises:
        UserError: the inputs of the model are none that transformers' processor makes.
    """
    tiling = any_res(module)
    pins = [[rows * tiling.tile, columns * tiling.tile] for rows, columns in tiling.grids]
    if tiling.rule == "hf":  # its tiling swaps them
        pins = [[wide, high] for high, wide in pins]
    image = {"image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": pins, "do_pad": True}
    return hf_files(module, tiling.tile, LlavaNextConfig, {"image_grid_pinpoints": pins}, image)


def any_res(module: MultimodalModule) -> AnyRes:
    """Return the tiling of a LLaVA-NeXT.

    Raises:
        UserError: it has other inputs than those of LLaVA-NeXT.
    """
    tiling, layout = module.processor.tiling, module.processor.layout
    if not isinstance(tiling, AnyRes) or not isinstance(layout, BaseThenUnpaddedRows):
        raise UserError(f"LLaVA-NeXT has views of AnyRes in unpadded rows; the run has {tiling} and {layout}")
    return tiling


def authors_files(module: MultimodalModule, dtype: str, more: dict[str, Any]) -> Files:
    """Describe the files of the authors without the vision encoder.

    Args:
        dtype: dtype of the published files.
        more: keys of config.json that the family sets.
    """
    text, vision = text_config(module, MODELS), module.network.vision
    clip_config(module)  # refuses other encoders
    with torch.device("meta"):
        language = AutoModelForCausalLM.from_config(text)
    tensors = {name: Stored(dtype, tuple(tensor.shape)) for name, tensor in language.state_dict().items()}
    if text.tie_word_embeddings:
        tensors.pop("lm_head.weight")
    wide, width = vision.width, text.hidden_size
    shapes = {"0.weight": (width, wide), "0.bias": (width,), "2.weight": (width, width), "2.bias": (width,)}
    projector = LINEAR.removesuffix("weight")
    tensors |= {f"{projector}{name}": Stored(dtype, shape) for name, shape in shapes.items()}
    config = text.to_dict() | {
        "model_type": MODELS[text.model_type],
        "architectures": [CLASSES[text.model_type]],
        "mm_vision_select_layer": layer_of(module),
        "mm_vision_select_feature": "patch",
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": wide,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "dtype": dtype,
    }
    return Files(config | more, tensors, names={"vision": vision_name(vision)})


def vision_name(vision: ViT) -> str:
    """Return the published name of the vision encoder, which is the place of the recipe's weights, or else the name of
    the published CLIP of these sizes; "" if there is none."""
    kind, _, joined = (vision.weights or "").partition(":")
    if kind == "clip":
        (place, *_) = places_of(joined)
        return str(Path(place).absolute()) if Path(place).exists() else place
    sizes = (vision.image_size, vision.patch, vision.width, vision.published_layers, vision.heads, vision.ffn_width)
    return CLIPS.get((*sizes, vision.activation), "") if vision.eps == CLIP_EPSILON else ""


def authors_1_5(module: MultimodalModule) -> Files:
    """Describe LLaVA-1.5 for the authors' code.

    Raises:
        UserError: the inputs of the model are none that the authors' code makes.
    """
    tiling = module.processor.tiling
    if not isinstance(tiling, Pad | CentreCrop):
        raise UserError(f"the authors' LLaVA-1.5 pads or crops one view of an image; the run has {tiling}")
    files = authors_files(module, AUTHORS, {"image_aspect_ratio": "pad" if isinstance(tiling, Pad) else "square"})
    return replace(files, parts={"vision": clip_config(module).to_dict()})


def authors_next(module: MultimodalModule) -> Files:
    """Describe LLaVA-NeXT for the authors' code, with its vision encoder."""
    tiling = any_res(module)
    pins = [[columns * tiling.tile, rows * tiling.tile] for rows, columns in tiling.grids]
    if tiling.rule == "hf":
        pins = [[high, wide] for wide, high in pins]
    more = {
        "image_aspect_ratio": "anyres",
        "image_grid_pinpoints": pins,
        "mm_patch_merge_type": "spatial_unpad",
        "unfreeze_mm_vision_tower": True,
    }
    files = authors_files(module, AUTHORS_NEXT, more)
    with torch.device("meta"):
        tower = CLIPVisionModel(clip_config(module)).state_dict()
    names = {name: f"{TOWER}{name.removeprefix('vision_model.')}" for name in tower}
    tensors = {names[name]: Stored(AUTHORS_NEXT, tuple(tensor.shape)) for name, tensor in tower.items()}
    newline = {NEWLINE: Stored(AUTHORS_NEXT, (module.network.language.width,))}
    last = outside(list(tensors), module.network.vision.num_layers, TOWER)
    return replace(files, tensors=dict(files.tensors) | newline | tensors, outside=last)


LLAVA, FIRST, NEXT = (f"lit_mm.families.{name}" for name in ("Llava", "Llava15", "LlavaNext"))
CONVERSIONS = (
    Conversion("llava_1_5/hf", FIRST, hf_1_5),
    Conversion("llava_1_5/authors", FIRST, authors_1_5),
    Conversion("llava_next/hf", NEXT, hf_next),
    Conversion("llava_next/authors", NEXT, authors_next),
)
REFUSALS = {
    (LLAVA, "hf"): "the projector of transformers' LLaVA has two linears with a GELU between them, and LLaVA 1 has one",
}
