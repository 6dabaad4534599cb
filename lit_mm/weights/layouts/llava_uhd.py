"""The layout of LLaVA-UHD: that of LLaVA with a resampler."""

from __future__ import annotations

import math

from lit_mm.weights.layouts.chats import CHAT
from lit_mm.weights.layouts.layout import Config, Described, Layout
from lit_mm.weights.layouts.llava import SEPARATE, STAGE, authors_parts, tied, with_decoder
from lit_mm.weights.layouts.sizes import component, sizes_of, tokenizer
from lit_mm.weights.llava_uhd import llava_uhd_to_model

QUERY = "model.mm_projector.query"
ARXIV_QUERIES = 64  # of the version on arXiv; the released one has 144


def model(described: Described) -> Config:
    """Build the `model` section; the number of queries shows the version."""
    vision, language, chat = authors_parts(described)
    vision["init_args"] |= {"any_size": True}
    side, patch = vision["init_args"]["image_size"], vision["init_args"]["patch"]
    queries, width = described.stored[QUERY].shape
    arxiv = queries == ARXIV_QUERIES
    tiling, layout = ("UhdArxiv", "InOrder") if arxiv else ("Uhd", "SlicesThenOverview")
    resampler = {"side": math.isqrt(queries), "heads": 8 if arxiv else max(1, width // 128), "regions": not arxiv}
    return {
        "class_path": "lit_mm.families.LlavaUHD",
        "init_args": {
            "vision": vision,
            "language": language,
            "tokenizer": tokenizer(described),
            "image_size": side,
            "connector": component("lit_mm.connectors.slice_resampler.SliceResampler", **resampler),
            "inputs": {
                "tiling": component(f"lit_mm.tiling.{tiling}", size=side, patch=patch),
                "layout": component(f"lit_mm.samples.{layout}"),
                "prompt": component(CHAT, **chat),
                "max_length": min(sizes_of(language)["max_positions"], 4096),
            },
        },
    }


LAYOUTS = (
    Layout(
        "llava_uhd/authors",
        "files of github.com/thunlp/LLaVA-UHD",
        lambda described: QUERY in described.stored,
        model,
        with_decoder(llava_uhd_to_model),
        STAGE,
        SEPARATE,
        copies=tied,
    ),
)
