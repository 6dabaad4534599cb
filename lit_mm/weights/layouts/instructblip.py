"""The layout of InstructBLIP in transformers, with a decoder or an encoder-decoder."""

from __future__ import annotations

import tokenizers

from lit_mm.errors import UserError
from lit_mm.weights.blip2 import hf_to_blip2
from lit_mm.weights.layouts.layout import Config, Described, Layout, State, require
from lit_mm.weights.layouts.sizes import component, llama_part, t5_part, tokenizer
from lit_mm.weights.names import add_prefix

FIRST, LAST = "[CLS]", "[SEP]"  # tokens around the instruction in the Q-Former
FOLDER = "qformer_tokenizer"  # of the tokenizer that the Q-Former's instruction has
QUERIES, CONSTANTS = "query_tokens", "qformer.embeddings.position_ids"
LENGTH = 128  # tokens of the instruction in the Q-Former, as released
STAGE = {part: {"lr": 1e-5, "weight_decay": 0.05} for part in ("connector", "text_branch", "projection")}


def model(described: Described) -> Config:
    """Build the `model` section from `config.json`.

    Raises:
        UserError: the config has a value that cannot be imported, or the Q-Former's tokenizer is missing.
    """
    vision, qformer = described.config["vision_config"], described.config["qformer_config"]
    text = described.config["text_config"]
    require(described, vision, {"hidden_act": ("gelu",), "qkv_bias": (True,)})
    require(described, qformer, {"hidden_act": ("gelu",), "layer_norm_eps": (1e-12,)})
    kind = text.get("model_type", "llama")
    language = t5_part(text) if kind == "t5" else llama_part(text, kind)
    encoder = {
        "name": "eva_giant_patch14_clip_224",
        "image_size": vision.get("image_size", 224),
        "drop_cls": False,
        "overrides": {
            "patch_size": vision.get("patch_size", 14),
            "embed_dim": vision.get("hidden_size", 1408),
            "depth": vision.get("num_hidden_layers", 39),
            "num_heads": vision.get("num_attention_heads", 16),
            # timm rounds the product of width and ratio down
            "mlp_ratio": (vision.get("intermediate_size", 6144) + 0.5) / vision.get("hidden_size", 1408),
        },
    }
    positions = qformer.get("max_position_embeddings", 512)
    connector = {
        "queries": described.stored[QUERIES].shape[1],
        "width": qformer.get("hidden_size", 768),
        "layers": qformer.get("num_hidden_layers", 12),
        "heads": qformer.get("num_attention_heads", 12),
        "ffn_width": qformer.get("intermediate_size", 3072),
        "cross_every": qformer.get("cross_attention_frequency", 2),
        "vocab_size": described.shape("qformer.embeddings.word_embeddings.weight")[0],
        "max_positions": positions,
        "dropout": qformer.get("hidden_dropout_prob", 0.1),
        "reads_text": True,
        "norm_eps": vision.get("layer_norm_eps", 1e-6),
    }
    prompt = component("lit_mm.prompts.instructblip.InstructBlipPrompt", writes_target=kind == "t5")
    return {
        "class_path": "lit_mm.families.InstructBlip",
        "init_args": {
            "vision": component("lit_mm.vision.timm_encoder.TimmEncoder", **encoder),
            "language": language,
            "connector": component("lit_mm.connectors.qformer_paired.PairedQFormer", **connector),
            "tokenizer": tokenizer(described),
            "reading": reading(described, min(LENGTH, positions)),
            "image_size": encoder["image_size"],
            "inputs": {"prompt": prompt, "max_length": language["init_args"].get("max_positions", 2048)},
        },
    }


def reading(described: Described, length: int) -> Config:
    """Build the `reading` section from the tokenizer of the Q-Former beside the checkpoint.

    Args:
        length: largest number of tokens of the instruction.
    Raises:
        UserError: there is no such tokenizer, or it lacks a token.
    """
    file = (described.folder / FOLDER / "tokenizer.json").absolute()
    if not file.is_file():
        raise UserError(
            f"{str(described.folder)!r} has no file {FOLDER}/{file.name}, the tokenizer of the text that the Q-Former "
            "reads. Put the one of the published checkpoint there"
        )
    vocabulary = tokenizers.Tokenizer.from_file(str(file))
    ids = {"first_id": vocabulary.token_to_id(FIRST), "last_id": vocabulary.token_to_id(LAST)}
    if None in ids.values():
        raise UserError(f"{str(file)!r} lacks {FIRST} or {LAST}, which stand around the text that the Q-Former reads")
    return {"tokenizer": str(file.parent), "text": "instruction", **ids, "max_length": length, "cut": "left"}


def rename(state: State, model: Config) -> State:
    """Rename a checkpoint of transformers; the constants 0, 1, 2, ... of older files are dropped."""
    return add_prefix(hf_to_blip2({name: tensor for name, tensor in state.items() if name != CONSTANTS}), "network")


LAYOUTS = (
    Layout(
        "instructblip/hf",
        "Salesforce/instructblip-vicuna-7b",
        lambda described: described.config.get("model_type") == "instructblip" and QUERIES in described.stored,
        model,
        rename,
        STAGE,
        in_transformers=True,
    ),
)
