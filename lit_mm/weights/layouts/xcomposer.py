"""The layout of XComposer 1.0."""

from __future__ import annotations

import re

from lit_mm.weights.layouts.layout import Config, Described, Layout
from lit_mm.weights.layouts.llava import without_sizes
from lit_mm.weights.layouts.sizes import EVA_PATCHES, component, eva_part, llama_part, qformer_sizes, tokenizer
from lit_mm.weights.names import below
from lit_mm.weights.xcomposer import xcomposer_to_model

PATCHES, PROJECTION = f"visual_encoder.{EVA_PATCHES}", "internlm_proj.weight"
BRANCH = re.compile(r"internlm_model\.model\.layers\.0\.(?:self_attn|mlp)\.(\w+)\.lora_A\.weight")
STAGE = {"connector": {"lr": 5e-5, "weight_decay": 0.1}, "lora": {"lr": 5e-5, "weight_decay": 0.1}}


def model(described: Described) -> Config:
    """Build the `model` section. Sizes of encoder and sampler come from the shapes, heads from the published widths."""
    vision = eva_part(below(described.stored, "visual_encoder."), cut=True)
    branches = {match[1]: described.stored[name].shape[0] for name in described.stored if (match := BRANCH.match(name))}
    rank = max(branches.values())
    order = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    language = llama_part(described.config)
    language["init_args"]["attention_bias"] = True
    ends = {"end_of_human": "<TOKENS_UNUSED_0>", "end_of_assistant": "<TOKENS_UNUSED_1>"}
    return {
        "class_path": "lit_mm.families.XComposer",
        "init_args": {
            "vision": vision,
            "language": language,
            "connector": component(
                "lit_mm.connectors.qformer_projector.QFormerProjector", **qformer_sizes(described.stored)
            ),
            "tokenizer": tokenizer(described),
            "image_size": vision["init_args"]["image_size"],
            "rank": rank,
            "alpha": rank,
            "dropout": 0.05,
            "linears": [name for name in order if name in branches],
            "inputs": {
                "prompt": component("lit_mm.prompts.xcomposer.XComposerPrompt", **ends),
                "max_length": min(language["init_args"]["max_positions"], 2048),
            },
        },
    }


LAYOUTS = (
    Layout(
        "xcomposer/authors",
        "internlm/internlm-xcomposer-7b",
        lambda described: PATCHES in described.stored and PROJECTION in described.stored,
        model,
        without_sizes(xcomposer_to_model),
        STAGE,
    ),
)
