"""The layouts of CogVLM and CogAgent on the hub, in the names of the authors' code beside the files."""

from __future__ import annotations

import math
import re

from lit_mm.errors import UserError
from lit_mm.weights.cogagent import ENCODER, SECOND, cogagent_to_model
from lit_mm.weights.cogvlm import VISION, cogvlm_to_model
from lit_mm.weights.layouts.layout import Config, Described, Layout, require
from lit_mm.weights.layouts.llava import without_sizes
from lit_mm.weights.layouts.sizes import CLIP_HEAD, component, llama_part, tokenizer
from lit_mm.weights.names import below

START = f"{VISION}boi"
BLOCK = re.compile(r"blocks\.(\d+)\.")
FINE = f"{SECOND}{ENCODER}"
EXAMPLES = ("THUDM/cogvlm-chat-hf", "THUDM/cogagent-chat-hf")
# Key template_version of the config -> template of the prompt. That of CogVLM calls the questions and answers "chat"
TEMPLATES = {"base": "base", "vqa": "vqa", "chat": "chat_old"}
RATE = {"lr": 1e-5, "weight_decay": 0.05}
STAGE = dict.fromkeys(("connector", "flags", "visual_expert"), RATE)
STAGE_AGENT = STAGE | {"cross_attention": RATE, "second_connector": RATE, "second_vision": RATE | {"lr": 1e-6}}


def parts(described: Described, templates: dict[str, str]) -> Config:
    """Return the arguments that CogVLM and CogAgent share.

    Args:
        templates: value of template_version in the config -> template of the prompt.
    Raises:
        UserError: the config has a value that cannot be imported, or there is no tokenizer.
    """
    config, vision = described.config, described.config["vision_config"]
    version = config.get("template_version", "chat")
    require(described, config, {"hidden_act": ("silu",), "template_version": tuple(templates)})
    require(described, vision, {"hidden_act": ("gelu",), "in_channels": (3,), "layer_norm_eps": (1e-6,)})
    encoder = {
        "name": "eva02_enormous_patch14_clip_224",
        "image_size": vision["image_size"],
        "select_layer": -2,  # the published files lack the last block
        "overrides": {
            "patch_size": vision["patch_size"],
            "embed_dim": vision["hidden_size"],
            "depth": vision["num_hidden_layers"] + 1,
            "num_heads": vision["num_heads"],
            "mlp_ratio": (vision["intermediate_size"] + 0.5) / vision["hidden_size"],  # timm rounds the product down
        },
    }
    language = llama_part({key: value for key, value in config.items() if key != "vision_config"})
    ffn_width = described.stored[f"{VISION}linear_proj.gate_proj.weight"].shape[0]
    table = described.stored.get(f"{VISION}pos_embed")
    positions = {"positions": table.shape[0]} if table else {}
    return {
        "vision": component("lit_mm.vision.timm_encoder.TimmEncoder", **encoder),
        "language": language,
        "connector": component("lit_mm.connectors.glu.GLUProjector", ffn_width=ffn_width, **positions),
        "tokenizer": tokenizer(described),
        "image_size": vision["image_size"],
        "inputs": {
            "prompt": component("lit_mm.prompts.cogvlm.CogVLMPrompt", template=templates[version]),
            "max_length": language["init_args"]["max_positions"],
        },
    }


def cogvlm(described: Described) -> Config:
    """Build the `model` section of CogVLM."""
    return {"class_path": "lit_mm.families.CogVLM", "init_args": parts(described, TEMPLATES)}


def cogagent(described: Described) -> Config:
    """Build the `model` section of CogAgent; sizes of the encoder of the high resolution come from its shapes.

    Raises:
        UserError: the position tables of the encoder disagree, or see `parts`.
    """
    second = below(described.stored, FINE)
    width, _, patch, _ = second["patch_embed.proj.weight"].shape
    patches, rows = described.stored[f"{SECOND}pos_embed"].shape[0], second["pos_embed"].shape[1]
    if rows != patches + 1:
        raise UserError(
            f"{str(described.folder)!r}: {FINE}pos_embed has {rows} rows, and {SECOND}pos_embed {patches} without the "
            "class token. Is the checkpoint complete?"
        )
    size = math.isqrt(patches) * patch
    encoder = {
        "name": "eva02_large_patch14_clip_224",
        "image_size": size,
        "select_layer": -2,
        "overrides": {
            "patch_size": patch,
            "embed_dim": width,
            "depth": 1 + max(int(match[1]) for name in second if (match := BLOCK.match(name))),
            "num_heads": width // CLIP_HEAD,
            "mlp_ratio": (second["blocks.0.mlp.w1.weight"].shape[0] + 0.5) / width,
        },
    }
    shared = parts(described, {name: name for name in ("base", "vqa", "chat", "chat_old")})
    arguments = {
        "second_vision": component("lit_mm.vision.timm_encoder.TimmEncoder", **encoder),
        "second_size": size,
        "cross_width": described.stored["model.layers.0.cross_attn.query.weight"].shape[0],
        "cross_heads": shared["language"]["init_args"]["heads"],
    }
    return {"class_path": "lit_mm.families.CogAgent", "init_args": shared | arguments}


def is_agent(described: Described) -> bool:
    """Return True for a checkpoint with the encoder of the high resolution."""
    return START in described.stored and f"{SECOND}pos_embed" in described.stored


LAYOUTS = (
    Layout(
        "cogvlm/authors",
        EXAMPLES[0],
        lambda described: START in described.stored and not is_agent(described),
        cogvlm,
        without_sizes(cogvlm_to_model),
        STAGE,
    ),
    Layout("cogagent/authors", EXAMPLES[1], is_agent, cogagent, without_sizes(cogagent_to_model), STAGE_AGENT),
)
