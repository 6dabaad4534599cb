"""The layout of Mini-Gemini, whose folders leave out both vision encoders."""

from __future__ import annotations

import re
from dataclasses import replace

from lit_mm.errors import UserError
from lit_mm.weights.layouts.chats import CHAT, MINI_GEMINI, language_kind
from lit_mm.weights.layouts.layout import Config, Described, Layout
from lit_mm.weights.layouts.llava import STAGE, authors_parts, tied, with_decoder
from lit_mm.weights.layouts.sizes import component, sizes_of, tokenizer
from lit_mm.weights.mini_gemini import FINE, MINING, mini_gemini_to_model
from lit_mm.weights.names import below
from lit_mm.weights.timm import PREFIXES

CLIP = "openai/clip-vit-large-patch14-336"
CONVNEXT = "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup"
QUERY = f"{next(iter(MINING))}1.weight"
CONNECTOR = "lit_mm.connectors.patch_info_mining.PatchInfoMining"
SIZE = 768  # pixels of the fine view, as released beside 336 pixels of the coarse one
BLOCK = re.compile(r"stages\.(\d+)\.blocks\.(\d+)\.")


def fine_part(described: Described, size: int) -> Config:
    """Build the section of the ConvNeXt, with widths and depths from its shapes.

    Args:
        size: side of the view, pixels.
    Raises:
        UserError: neither the checkpoint nor `--with second_vision=` has the encoder.
    """
    if "second_vision" in described.parts:
        stored = described.parts["second_vision"].stored
        stored = next((inner for prefix in PREFIXES if (inner := below(stored, prefix))), stored)
    else:
        stored = {
            place.removeprefix("model.") + name: of
            for published, place in FINE.items()
            for name, of in below(described.stored, published).items()
        }
    blocks = [(int(match[1]), int(match[2])) for name in stored if (match := BLOCK.match(name))]
    if not blocks:
        raise UserError(
            f"{str(described.folder)!r} has no fine vision encoder, which is {CONVNEXT}. Add --with "
            f"second_vision={CONVNEXT}, or a folder or file of it"
        )
    stages = range(1 + max(stage for stage, _ in blocks))
    depths = [1 + max(block for of, block in blocks if of == stage) for stage in stages]
    widths = [stored[f"stages.{stage}.blocks.0.gamma"].shape[0] for stage in stages]
    return component(
        "lit_mm.vision.timm_encoder.TimmEncoder",
        name="convnext_large_mlp.clip_laion2b_ft_soup_320",
        image_size=size,
        pyramid=True,
        overrides={"depths": depths, "dims": widths},
    )


def model(described: Described) -> Config:
    """Build the `model` section.

    Raises:
        UserError: an encoder is missing, or the config has a value that cannot be imported.
    """
    config = described.config
    clip = replace(described, config=config | {"mm_vision_tower": CLIP})
    coarse, language, chat = authors_parts(clip, MINI_GEMINI)
    scales = language_kind(described) == "gemma"  # the release multiplies all embeddings of Gemma, images included
    size = config.get("image_size_aux", SIZE)
    tiling = "Pad" if config.get("image_aspect_ratio", "pad") == "pad" else "CentreCrop"
    encoders = {
        "low": coarse,
        "high": fine_part(described, size),
        "tiles": config.get("image_grid", 1),
        "overview": config.get("image_global", False),
    }
    return {
        "class_path": "lit_mm.families.MiniGemini",
        "init_args": {
            "vision": component("lit_mm.vision.dual.DualEncoder", **encoders),
            "language": language,
            "tokenizer": tokenizer(described),
            **({"connector": component(CONNECTOR, scale_by_width=True)} if scales else {}),
            "inputs": {
                "tiling": component(f"lit_mm.tiling.{tiling}", size=size),
                "prompt": component(CHAT, **chat),
                "max_length": min(sizes_of(language)["max_positions"], 4096),
            },
        },
    }


LAYOUTS = (
    Layout(
        "mini_gemini/authors",
        "YanweiLi/MGM-7B, YanweiLi/MGM-2B, YanweiLi/MGM-8x7B",
        lambda described: any(name.endswith(QUERY) for name in described.stored),
        model,
        with_decoder(mini_gemini_to_model),
        STAGE,
        {
            "vision": ("clip", "mm_vision_tower"),
            "second_vision": ("timm", "mm_vision_tower_aux"),
            "language": ("language", "_name_or_path"),
        },
        copies=tied,
        places={"vision": "vision.low", "second_vision": "vision.high"},
    ),
)
