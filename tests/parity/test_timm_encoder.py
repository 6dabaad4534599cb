"""EVA encoders of timm equal the authors' code: CogVLM, CogAgent and BLIP-2."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lit_mm.vision.timm_encoder import TimmEncoder
from lit_mm.weights.convert import load_strict
from lit_mm.weights.names import add_prefix, below
from lit_mm.weights.timm import (
    cogvlm_to_timm,
    eva_clip_to_timm,
    hf_blip2_to_timm,
    timm_to_cogvlm,
    timm_to_eva_clip,
    timm_to_hf_blip2,
)
from tests.conftest import Golden

ATOL = 1e-5  # fp32; measured 6e-6 for CogAgent


def check_round_trip(original: dict[str, Tensor], back: dict[str, Tensor]) -> None:
    assert back.keys() == original.keys()
    for name, tensor in original.items():
        assert torch.equal(back[name], tensor), name


@torch.inference_mode()
def test_cogvlms_encoder_agrees_with_the_authors_code(golden: Golden) -> None:
    config = golden.json("cogvlm_vision")["config"]["vision"]
    tensors = golden.tensors("cogvlm_vision")
    adapter = ("linear_proj.", "boi", "eoi", "pos_embed")  # the connector's
    published = {k: v for k, v in below(tensors, "weight.").items() if not k.startswith(adapter)}
    model = TimmEncoder(
        "eva02_enormous_patch14_clip_224",
        config["image_size"],
        drop_cls=False,
        overrides={
            "patch_size": config["patch_size"],
            "embed_dim": config["hidden_size"],
            "depth": config["num_hidden_layers"],
            "num_heads": config["num_heads"],
            "mlp_ratio": config["intermediate_size"] / config["hidden_size"],
        },
    ).eval()
    load_strict(model, cogvlm_to_timm(published))
    expected = tensors["after_transformer"]
    largest = float(expected.abs().max())  # the reference's float32 differs from float64 by 2e-6 of it
    torch.testing.assert_close(model(tensors["pixel_values"]), expected, rtol=0, atol=ATOL * largest)
    check_round_trip(published, timm_to_cogvlm(model.state_dict()))


@torch.inference_mode()
def test_cogagents_high_resolution_encoder_agrees_with_the_authors_code(golden: Golden) -> None:
    config = golden.json("cogagent_vision")["config"]
    tensors = golden.tensors("cogagent_vision")
    model = TimmEncoder(
        "eva02_large_patch14_clip_224",
        config["image_size"],
        select_layer=-2,
        drop_cls=False,
        overrides={
            "patch_size": config["patch_size"],
            "embed_dim": config["width"],
            "depth": config["depth"],
            "num_heads": config["heads"],
            "mlp_ratio": config["mlp_hidden"] / config["width"],
            "ref_feat_shape": (config["pretrain_grid"],) * 2,
        },
    ).eval()
    published = below(tensors, "weight.")
    load_strict(model, eva_clip_to_timm(published))
    torch.testing.assert_close(model(tensors["pixel_values"]), tensors["features"], rtol=0, atol=ATOL)
    last, unused = f"blocks.{config['depth'] - 1}.", ("norm.", "head.")
    kept = {k: v for k, v in published.items() if not k.startswith((last, *unused)) and "rope." not in k}
    check_round_trip(kept, timm_to_eva_clip(model.state_dict()))


@pytest.mark.parametrize("file", ["blip2_hf_opt_tiny", "blip2_hf_t5_tiny"])
@torch.inference_mode()
def test_blip2s_encoder_agrees_with_transformers(golden: Golden, file: str) -> None:
    config = golden.json(file)["config"]["vision_config"]
    tensors = golden.tensors(file)
    published = below(tensors, "w.vision_model.")
    norm = below(published, "post_layernorm.")  # the connector's
    encoder = {name: tensor for name, tensor in published.items() if not name.startswith("post_layernorm.")}
    model = TimmEncoder(
        "eva_giant_patch14_clip_224",
        config["image_size"],
        drop_cls=False,
        norm=True,
        overrides={
            "patch_size": config["patch_size"],
            "embed_dim": config["hidden_size"],
            "depth": config["num_hidden_layers"],
            "num_heads": config["num_attention_heads"],
            "mlp_ratio": config["intermediate_size"] / config["hidden_size"],
        },
    ).eval()
    load_strict(model, hf_blip2_to_timm(encoder) | add_prefix(norm, "model.norm"))
    expected = tensors["out.vision_last_hidden_state"]
    torch.testing.assert_close(model(tensors["in.pixel_values"]), expected, rtol=0, atol=ATOL)
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("model.norm.")}
    check_round_trip(encoder, timm_to_hf_blip2(state))
