"""The layout of VILA. The files of VILA-1.0 look like LLaVA-1.5's, so that the user names it."""

from __future__ import annotations

from lit_mm.weights.layouts.chats import CHAT
from lit_mm.weights.layouts.layout import Config, Described, Layout
from lit_mm.weights.layouts.llava import SEPARATE, STAGE, authors_parts, is_llava_1_5, tied, with_decoder
from lit_mm.weights.layouts.sizes import component, sizes_of, tokenizer
from lit_mm.weights.vila import vila_to_model

DOWNSAMPLE = "model.mm_projector.layers.1.weight"


def model(described: Described) -> Config:
    """Build the `model` section, with the projector of version 1.0 or 1.5."""
    vision, language, chat = authors_parts(described)
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
