"""The layouts of VILA. The files of VILA-1.0 look like LLaVA-1.5's, so that the user names it; VILA-1.5 has folders."""

from __future__ import annotations

import re
from dataclasses import replace

from lit_mm.errors import UserError
from lit_mm.weights.layouts.chats import CHAT, VILA, chat_arguments
from lit_mm.weights.layouts.layout import Config, Described, Layout, require
from lit_mm.weights.layouts.llava import SEPARATE, STAGE, authors_parts, is_llava_1_5, tied, with_decoder
from lit_mm.weights.layouts.sizes import (
    clip_part,
    component,
    decoder_part,
    names_of,
    siglip_part,
    sizes_of,
    tokenizer,
)
from lit_mm.weights.vila import LANGUAGE, PROJECTOR, vila_folders_to_model, vila_to_model

FIRST_LLAMA_3 = re.compile(r"vila1\.5-8b(?!-fix)", re.I)  # name of the checkpoint whose template is that of May 2024
# mm_projector_type -> connector
PROJECTORS = {
    "linear": "linear.linear_projector",
    "mlp2x_gelu": "mlp.MLPProjector",
    "mlp_downsample": "downsample.DownsampleMLP",
}
STAGE_1_5 = {part: {"lr": 1e-4, "weight_decay": 0.0} for part in ("vision", "connector", "language")}
DOWNSAMPLE = "model.mm_projector.layers.1.weight"


def templates(described: Described) -> dict[str, str]:
    """Return kind of chat -> name of the template that a checkpoint was trained with.

    Llama-3-VILA1.5-8b was trained with the code of its release, Llama-3-VILA1.5-8b-Fix with the corrected template.
    """
    is_first = any(FIRST_LLAMA_3.search(name) for name in names_of(described))
    return VILA | ({"llama_3": "vila_1_5_llama_3"} if is_first else {})


def model(described: Described) -> Config:
    """Build the `model` section, with the projector of version 1.0 or 1.5."""
    vision, language, chat = authors_parts(described, templates(described))
    side = vision["init_args"]["image_size"]
    connector = "downsample.DownsampleMLP" if DOWNSAMPLE in described.stored else "mlp.MLPProjector"
    return {
        "class_path": "lit_mm.families.Vila",
        "init_args": {
            "vision": vision,
            "language": language,
            "tokenizer": tokenizer(described),
            "image_size": side,
            "connector": f"lit_mm.connectors.{connector}",
            "inputs": {
                "prompt": component(CHAT, **chat),
                "max_length": min(sizes_of(language)["max_positions"], 4096),
            },
        },
    }


def is_folders(described: Described) -> bool:
    """Return True for a checkpoint with a folder for the language model and one for the projector."""
    return all(any(name.startswith(start) for name in described.stored) for start in (LANGUAGE, PROJECTOR))


def folders_model(described: Described) -> Config:
    """Build the `model` section of a checkpoint of folders from their configs.

    Raises:
        UserError: a config has a value that cannot be imported, or the encoder is of a kind that no part computes.
    """
    config, projector, language = described.config, *(described.inside(name) for name in ("mm_projector", "llm"))
    require(
        described,
        config,
        {
            "s2": (False,),
            "dynamic_s2": (False,),
            "image_aspect_ratio": ("resize", "pad", "square", None),
            "mm_use_im_start_end": (False,),
        },
    )
    require(projector, projector.config, {"mm_projector_type": tuple(PROJECTORS)})
    vision, tiling = folders_vision(described)
    kind = str(language.config.get("model_type", "llama"))
    decoder = decoder_part(language.config, kind)
    return {
        "class_path": "lit_mm.families.Vila",
        "init_args": {
            "vision": vision,
            "language": decoder,
            "tokenizer": tokenizer(described),
            "image_size": vision["init_args"]["image_size"],
            "connector": f"lit_mm.connectors.{PROJECTORS[projector.config['mm_projector_type']]}",
            "inputs": {
                "tiling": tiling,
                "prompt": component(CHAT, **chat_arguments(described, kind, templates(described))),
                "max_length": min(sizes_of(decoder)["max_positions"], 4096),
            },
        },
    }


def folders_vision(described: Described) -> tuple[Config, Config]:
    """Return the `vision` section of a checkpoint of folders and its tiling.

    With "resize" both encoders get the stretched image. With "pad" it is padded before; otherwise the processor of CLIP
    crops and that of SigLIP stretches.

    Raises:
        UserError: the encoder is of a kind that no part computes, or a config has a value that cannot be imported.
    """
    tower, layer = described.inside("vision_tower"), described.config.get("mm_vision_select_layer", -2)
    kind, shape = tower.config.get("model_type"), described.config.get("image_aspect_ratio")
    side = tower.config.get("image_size", 224)
    if kind == "clip_vision_model":
        require(described, described.config, {"mm_vision_select_feature": ("patch",)})
        vision = clip_part(replace(described, parts={**described.parts, "vision": tower}), layer)
        name = {"resize": "Stretch", "pad": "Pad"}.get(shape, "CentreCrop")
        return vision, component(f"lit_mm.tiling.{name}", size=side)
    if kind == "siglip_vision_model":
        require(described, described.config, {"mm_vision_select_feature": ("cls_patch",)})
        require(described, described.config, {"image_aspect_ratio": ("resize", "square", None)})
        patch = tower.config.get("patch_size", 16)
        return siglip_part(tower, layer), component("lit_mm.tiling.Stretch", size=side, patch=patch)
    raise UserError(
        f"{str(tower.folder)!r} has a vision encoder of model_type {kind!r}, which no part here computes; a VILA with "
        "clip_vision_model or siglip_vision_model can be imported, such as Efficient-Large-Model/VILA1.5-13b"
    )


def tied_in_folder(described: Described) -> dict[str, str]:
    """Name the output projection that repeats the embeddings, in the folder of a language model that ties them."""
    language = described.inside("llm")
    head, table = "lm_head.weight", "model.embed_tokens.weight"
    ties = language.config.get("tie_word_embeddings", False) and {head, table} <= language.stored.keys()
    return {f"{LANGUAGE}{head}": f"{LANGUAGE}{table}"} if ties else {}


LAYOUTS = (
    Layout(
        "vila/authors",
        "Efficient-Large-Model/VILA-7b (with --layout vila/authors)",
        lambda described: DOWNSAMPLE in described.stored,
        model,
        with_decoder(vila_to_model),
        STAGE,
        SEPARATE,
        accepts=lambda described: DOWNSAMPLE in described.stored or is_llava_1_5(described),
        copies=tied,
    ),
    Layout(
        "vila_1_5/authors",
        "Efficient-Large-Model/VILA1.5-3b, Efficient-Large-Model/Llama-3-VILA1.5-8b-Fix",
        is_folders,
        folders_model,
        with_decoder(vila_folders_to_model),
        STAGE_1_5,
        copies=tied_in_folder,
    ),
)
