"""The layout of Qwen-VL, and the sizes that Monkey shares with it."""

from __future__ import annotations

import math

from lit_mm.errors import UserError
from lit_mm.weights.layouts.layout import Config, Described, Layout, State
from lit_mm.weights.layouts.sizes import component, names_of, tokenizer
from lit_mm.weights.qwen_vl import qwen_vl_to_model

VISUAL, ADAPTER = "transformer.visual.conv1.weight", "in_proj_lora."
STAGE = {"connector": {"lr": 1e-5, "weight_decay": 0.05}, "language": {"lr": 1e-5, "weight_decay": 0.05}}


def is_qwen_vl(described: Described) -> bool:
    """Return True for Qwen-VL's vision tower without the adapters of models that extend it."""
    return VISUAL in described.stored and not any(ADAPTER in name for name in described.stored)


def parts(described: Described) -> Config:
    """Build the sections of the parts: vision, language, connector and tokenizer.

    Raises:
        UserError: config.json does not describe the vision tower.
    """
    config = described.config
    visual = config.get("visual") or {}
    if "heads" not in visual or "num_attention_heads" not in config:
        raise UserError(f"{str(described.folder / 'config.json')!r} lacks visual.heads or num_attention_heads")
    width, _, patch, _ = described.stored[VISUAL].shape
    table = described.shape("transformer.visual.positional_embedding")[0]
    vision = {
        "image_size": math.isqrt(table) * patch,
        "patch": patch,
        "width": width,
        "layers": visual["layers"],
        "heads": visual["heads"],
        "ffn_width": described.shape("resblocks.0.mlp.c_fc.weight")[0],
        "activation": "gelu",
        "eps": 1e-6,
        "class_token": False,
        "any_size": True,
    }
    language = {
        "width": config["hidden_size"],
        "layers": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "kv_heads": config["num_attention_heads"],
        "ffn_width": described.shape("h.0.mlp.w1.weight")[0],
        "vocab_size": described.stored["transformer.wte.weight"].shape[0],
        "rope_theta": float(config.get("rotary_emb_base", 10000)),
        "norm_eps": config.get("layer_norm_epsilon", 1e-6),
        "max_positions": config.get("max_position_embeddings", 8192),
        "attention_bias": "qkv",
    }
    queries, wide = described.shape("attn_pool.query")
    resampler = {"grid_size": math.isqrt(queries), "heads": max(1, wide // 128)}
    return {
        "vision": component("lit_mm.vision.vit.ViT", **vision),
        "language": component("lit_mm.language.llama.Llama", **language),
        "connector": component("lit_mm.connectors.resampler.NormalisedResampler", **resampler),
        "tokenizer": tokenizer(described),
    }


def model(described: Described) -> Config:
    """Build the `model` section. generation_config.json says if it is the chat model, or else its name."""
    generation = described.json("generation_config.json")
    by_name = any("chat" in name.lower() for name in names_of(described))
    chat = generation["chat_format"] == "chatml" if "chat_format" in generation else by_name
    prompt = f"lit_mm.prompts.qwen_vl.{'QwenChat' if chat else 'QwenPlain'}"
    inputs = {"prompt": component(prompt), "max_length": 2048}
    side = described.config["visual"].get("image_size", 448)
    return {
        "class_path": "lit_mm.families.QwenVL",
        "init_args": parts(described) | {"image_size": side, "inputs": inputs},
    }


def rename(state: State, model: Config) -> State:
    """Rename a checkpoint of Qwen-VL."""
    return qwen_vl_to_model(state, heads=model["init_args"]["vision"]["init_args"]["heads"])


LAYOUTS = (Layout("qwen_vl/authors", "Qwen/Qwen-VL, Qwen/Qwen-VL-Chat", is_qwen_vl, model, rename, STAGE),)
