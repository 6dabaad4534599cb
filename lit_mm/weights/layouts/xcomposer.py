"""The layout of XComposer 1.0."""

from __future__ import annotations

import math
import re

from lit_mm.weights.layouts.layout import Config, Described, Layout
from lit_mm.weights.layouts.llava import without_sizes
from lit_mm.weights.layouts.sizes import component, llama_part, tokenizer
from lit_mm.weights.xcomposer import xcomposer_to_model

PATCHES, QUERIES, PROJECTION = "visual_encoder.patch_embed.proj.weight", "query_tokens", "internlm_proj.weight"
BLOCK = re.compile(r"visual_encoder\.blocks\.(\d+)\.")
QLAYER = re.compile(r"Qformer\.bert\.encoder\.layer\.(\d+)\.(crossattention\.)?")
BRANCH = re.compile(r"internlm_model\.model\.layers\.0\.(?:self_attn|mlp)\.(\w+)\.lora_A\.weight")
HEAD_EVA, HEAD_QFORMER = 88, 64  # width of an attention head in EVA ViT-g and in BERT
RATIO = 4.3637  # feed-forward width / width of EVA ViT-g
STAGE = {"connector": {"lr": 5e-5, "weight_decay": 0.1}, "lora": {"lr": 5e-5, "weight_decay": 0.1}}


def model(described: Described) -> Config:
    """Build the `model` section. Sizes of encoder and sampler come from the shapes, heads from the published widths."""
    width, _, patch, _ = described.stored[PATCHES].shape
    table, ffn = described.shape("visual_encoder.pos_embed"), described.shape("visual_encoder.blocks.0.mlp.fc1.weight")
    side = math.isqrt(table[1] - 1) * patch
    _, queries, qwidth = described.stored[QUERIES].shape
    matches = [match for name in described.stored if (match := QLAYER.match(name))]
    layers = 1 + max(int(match[1]) for match in matches)
    crossing = len({match[1] for match in matches if match[2]})
    branches = {match[1]: described.stored[name].shape[0] for name in described.stored if (match := BRANCH.match(name))}
    rank = max(branches.values())
    order = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    language = llama_part(described.config)
    language["init_args"]["attention_bias"] = True
    blocks = 1 + max(int(match[1]) for name in described.stored if (match := BLOCK.match(name)))
    vision = {
        "name": "eva_giant_patch14_clip_224",
        "image_size": side,
        "select_layer": -2,  # the files hold no block after the features
        "drop_cls": False,
        "overrides": {
            "patch_size": patch,
            "embed_dim": width,
            "depth": blocks + 1,
            "num_heads": width // HEAD_EVA,
            "mlp_ratio": RATIO if int(width * RATIO) == ffn[0] else ffn[0] / width,
        },
    }
    sampler = {
        "queries": queries,
        "width": qwidth,
        "layers": layers,
        "heads": qwidth // HEAD_QFORMER,
        "ffn_width": described.shape("layer.0.intermediate_query.dense.weight")[0],
        "cross_every": layers // crossing,
    }
    ends = {"end_of_human": "<TOKENS_UNUSED_0>", "end_of_assistant": "<TOKENS_UNUSED_1>"}
    return {
        "class_path": "lit_mm.families.XComposer",
        "init_args": {
            "vision": component("lit_mm.vision.timm_encoder.TimmEncoder", **vision),
            "language": language,
            "connector": component("lit_mm.connectors.qformer_projector.QFormerProjector", **sampler),
            "tokenizer": tokenizer(described),
            "image_size": side,
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
