"""The layout of VILA. The files of VILA-1.0 look like LLaVA-1.5's, so that the user names it."""

from __future__ import annotations

import re

from lit_mm.weights.layouts.chats import CHAT, VILA
from lit_mm.weights.layouts.layout import Config, Described, Layout
from lit_mm.weights.layouts.llava import SEPARATE, STAGE, authors_parts, is_llava_1_5, tied, with_decoder
from lit_mm.weights.layouts.sizes import component, names_of, sizes_of, tokenizer
from lit_mm.weights.vila import vila_to_model

FIRST_LLAMA_3 = re.compile(r"vila1\.5-8b(?!-fix)", re.I)  # name of the checkpoint whose template is that of May 2024
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
)
