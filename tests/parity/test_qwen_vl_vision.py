"""Qwen-VL's vision encoder, resampler and projection together equal Monkey's tower without adapters.

The golden file of Monkey has the output of the tower for its first window without an adapter.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lit_mm.connectors.resampler import NormalisedResampler
from lit_mm.vision.vit import ViT
from lit_mm.weights.convert import load_strict
from lit_mm.weights.qwen_vl import qwen_visual_to_parts

FILE = "monkey_lora"


def tower(golden: Any) -> nn.ModuleDict:
    """Encoder and connector with the sizes of the golden file and the weights of the release."""
    config = golden.json("monkey_tiles")["lora_file"]["config"]
    weights = {name: tensor for name, tensor in golden.tensors(FILE, "w.").items() if "_lora." not in name}
    side, pool = math.isqrt(len(weights["positional_embedding"])), config["resampler"]
    vision = ViT(
        image_size=side * config["patch_size"],
        patch=config["patch_size"],
        width=config["width"],
        layers=config["layers"],
        heads=config["heads"],
        ffn_width=config["mlp_width"],
        activation="gelu",
        eps=config["layer_norm_eps"],
        class_token=False,
        any_size=True,
    )
    connector = NormalisedResampler(
        pool["kv_dim"], pool["embed_dim"], pool["grid_size"], heads=pool["num_heads"], eps=config["layer_norm_eps"]
    )
    parts = nn.ModuleDict({"vision": vision, "connector": connector}).eval()
    load_strict(parts, qwen_visual_to_parts(weights, heads=config["heads"]))
    return parts


def assert_close(golden: Any, ours: Tensor, theirs: Tensor) -> None:
    golden.assert_close(ours, theirs, golden.json("monkey_tiles")["lora_file"]["tolerance"])


@torch.inference_mode()
def test_the_tower_agrees_with_the_release(golden: Any) -> None:
    tensors, parts = golden.tensors(FILE), tower(golden)
    size = tensors["global_resized"].shape[-1]
    window = tensors["image_int8"][..., :size, :size].float() / 32
    assert_close(golden, parts["connector"](parts["vision"](window)), tensors["tile0_lora_None"])
    whole = parts["connector"](parts["vision"](tensors["global_resized"]))
    assert_close(golden, whole, tensors["visual_tokens"][:, -whole.shape[1] :])


@torch.inference_mode()
def test_a_block_agrees_with_the_release(golden: Any) -> None:
    tensors, parts = golden.tensors(FILE), tower(golden)
    block = parts["vision"].blocks[0]
    assert_close(golden, block(tensors["block.x"].transpose(0, 1)).transpose(0, 1), tensors["block.y_lora_None"])
