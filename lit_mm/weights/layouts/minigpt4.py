"""The layout of MiniGPT-4, whose files hold the projection alone."""

from __future__ import annotations

from lit_mm.errors import UserError
from lit_mm.weights.layouts.blip2 import VISION_FILE, lavis_rename, part
from lit_mm.weights.layouts.layout import Config, Described, Layout
from lit_mm.weights.layouts.sizes import (
    QUERIES,
    component,
    eva_part,
    llama_part,
    qformer_sizes,
    require_vicuna,
    tokenizer,
)

PROJECTION = "llama_proj.weight"
LANGUAGE = "Vicuna version 0, or LLaMA-2 chat for a projection of groups of patches"
QFORMER = "blip2_pretrained_flant5xxl.pth of LAVIS"
STAGE = {"projection": {"lr": 3e-5, "weight_decay": 0.05}}


def model(described: Described) -> Config:
    """Build the `model` section. The width that the projection reads tells if there is a Q-Former.

    Raises:
        UserError: a part is missing, or the projection fits neither a Q-Former nor groups of patches.
    """
    _, inputs = described.stored[PROJECTION].shape
    decoder = part(described, "language", LANGUAGE)
    language = llama_part(decoder.config)
    vision = part(described, "vision", VISION_FILE).stored
    channels = vision["patch_embed.proj.weight"].shape[0]
    has_qformer = inputs % channels != 0
    if has_qformer:
        require_vicuna(decoder, "0")
        stored = part(described, "connector", QFORMER).stored
        if QUERIES not in stored or stored[QUERIES].shape[-1] != inputs:
            raise UserError(
                f"{str(described.folder)!r}: {PROJECTION} reads {inputs} channels, which are neither those of a "
                f"Q-Former with {QUERIES} in --with connector=, nor groups of patches of {channels} channels"
            )
        connector = component("lit_mm.connectors.qformer_paired.PairedQFormer", **qformer_sizes(stored))
    else:
        connector = component("lit_mm.connectors.grouped.GroupedProjector", group=inputs // channels)
    template = "vicuna_chat" if has_qformer else "llama_2_chat"
    encoder = eva_part(vision, cut=False, drop_cls=not has_qformer)
    return {
        "class_path": "lit_mm.families.MiniGPT4",
        "init_args": {
            "vision": encoder,
            "language": language,
            "connector": connector,
            "tokenizer": tokenizer(described),
            "image_size": encoder["init_args"]["image_size"],
            "inputs": {
                "prompt": component("lit_mm.prompts.minigpt4.MiniGPT4Prompt", template=template),
                "max_length": min(language["init_args"]["max_positions"], 2048),
            },
        },
    }


LAYOUTS = (
    Layout(
        "minigpt4/authors",
        "files of github.com/Vision-CAIR/MiniGPT-4",
        lambda described: PROJECTION in described.stored and len(described.stored) == 2,
        model,
        lavis_rename,
        STAGE,
        {"vision": ("eva-clip", ""), "connector": ("blip2-qformer", ""), "language": ("llama", "")},
    ),
)
