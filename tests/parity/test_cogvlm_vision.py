"""Encoder, adapter and flags of CogVLM and CogAgent agree with the releases; whole checkpoints map both ways."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_mm.connectors.flags import WithFlags
from lit_mm.connectors.glu import GLUProjector
from lit_mm.connectors.positions import PositionTable
from lit_mm.families import CogAgent, CogVLM
from lit_mm.language.llama import Llama
from lit_mm.module import MultimodalModule
from lit_mm.vision.timm_encoder import TimmEncoder
from lit_mm.weights.cogagent import cogagent_to_model, model_to_cogagent
from lit_mm.weights.cogvlm import cogvlm_to_model, model_to_cogvlm, parts_to_visual, visual_to_parts
from lit_mm.weights.convert import load_strict
from lit_mm.weights.names import below
from lit_mm.weights.timm import eva_clip_to_timm

ATOL = 1e-5  # times the largest value, see test_timm_encoder.py


def encoder(config: dict[str, Any]) -> TimmEncoder:
    overrides = {
        "patch_size": config["patch_size"],
        "embed_dim": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "num_heads": config["num_heads"],
        "mlp_ratio": config["intermediate_size"] / config["hidden_size"],
    }
    return TimmEncoder("eva02_enormous_patch14_clip_224", config["image_size"], overrides=overrides)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["cogvlm", "cogagent"])
def test_encoder_and_adapter_agree_with_the_release(golden: Any, name: str) -> None:
    config, tensors = golden.json("cogvlm_vision")["config"], golden.tensors("cogvlm_vision")
    published = below(tensors, "weight.")
    positions = len(published["pos_embed"])
    if name == "cogvlm":
        published.pop("pos_embed")
    width, vision = config["llm_hidden"], encoder(config["vision"])
    projector = GLUProjector(
        vision.width, width, config["llm_intermediate"], positions=positions if name == "cogagent" else 0
    )
    parts = nn.ModuleDict({"vision": vision, "connector": WithFlags(projector, width)}).eval()
    load_strict(parts, visual_to_parts(published, vision="vision", connector="connector"))
    tokens = parts["connector"](parts["vision"](tensors["pixel_values"]))
    start, end = parts["connector"].learned()[:, None].expand(-1, len(tokens), -1)
    expected = tensors[f"output_{name}"]
    scale = float(tensors["after_transformer"].abs().max())
    torch.testing.assert_close(
        torch.cat([start[:, None], tokens, end[:, None]], 1), expected, rtol=0, atol=ATOL * scale
    )
    back = parts_to_visual(*(below(parts.state_dict(), f"{part}.") for part in ("vision", "connector")))
    assert back.keys() == published.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in published.items())


@torch.inference_mode()
def test_the_memory_agrees_with_the_release(golden: Any) -> None:
    config, tensors = golden.json("cogagent_vision")["config"], golden.tensors("cogagent_vision")
    model = TimmEncoder(
        "eva02_large_patch14_clip_224",
        config["image_size"],
        select_layer=-2,
        overrides={
            "patch_size": config["patch_size"],
            "embed_dim": config["width"],
            "depth": config["depth"],
            "num_heads": config["heads"],
            "mlp_ratio": config["mlp_hidden"] / config["width"],
            "ref_feat_shape": (config["pretrain_grid"],) * 2,
        },
    ).eval()
    load_strict(model, eva_clip_to_timm(below(tensors, "weight.")))
    table = PositionTable(len(tensors["extra_pos_embed"]), model.width)
    load_strict(table, {"table": tensors["extra_pos_embed"]})
    features = table(model(tensors["pixel_values"]))
    torch.testing.assert_close(features, tensors["encoder_outputs"], rtol=0, atol=ATOL)


SIZES = {"width": 16, "layers": 2, "heads": 2, "kv_heads": 2, "ffn_width": 24, "vocab_size": 512}
EVA = {"patch_size": 7, "embed_dim": 8, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0}


def glu(positions: int, vision_width: int, language_width: int) -> GLUProjector:
    return GLUProjector(vision_width, language_width, ffn_width=12, positions=positions)


def cogvlm() -> CogVLM:
    vision = TimmEncoder("eva02_enormous_patch14_clip_224", 28, select_layer=-2, overrides=EVA)
    return CogVLM(vision, Llama(**SIZES), "nano", 28, lambda *widths: glu(0, *widths))


def cogagent() -> CogAgent:
    vision = TimmEncoder("eva02_enormous_patch14_clip_224", 14, select_layer=-2, overrides=EVA)
    second = TimmEncoder("eva02_large_patch14_clip_224", 28, select_layer=-2, overrides=EVA)
    language = Llama(**SIZES)
    return CogAgent(vision, second, language, "nano", 14, 28, lambda *widths: glu(4, *widths), 8, 2)


NAMES = {
    "model.vision.boi": (1, 1, 16),
    "model.vision.patch_embedding.position_embedding.weight": None,
    "model.vision.linear_proj.dense_4h_to_h.weight": (16, 12),
    "model.layers.1.self_attn.vision_expert_query_key_value.weight": (48, 16),
    "model.layers.1.mlp.language_mlp.down_proj.weight": (16, 24),
    "lm_head.weight": (512, 16),
}
MORE = {
    "model.vision.pos_embed": (4, 8),
    "model.cross_vision.pos_embed": (16, 8),
    "model.cross_vision.vit.model.blocks.0.attn.inner_attn_ln.weight": (8,),
    "model.layers.0.cross_attn.key_value.weight": (16, 8),
    "model.layers.0.post_cross_attention_layernorm.weight": (16,),
}


@pytest.mark.parametrize(
    ("module", "export", "load", "names"),
    [(cogvlm, model_to_cogvlm, cogvlm_to_model, NAMES), (cogagent, model_to_cogagent, cogagent_to_model, NAMES | MORE)],
    ids=["cogvlm", "cogagent"],
)
def test_a_whole_checkpoint_keeps_every_tensor_there_and_back(module: Any, export: Any, load: Any, names: Any) -> None:
    model: MultimodalModule = module()
    state: dict[str, Tensor] = {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    state |= {name: torch.zeros_like(tensor) for name, tensor in state.items() if "second" in name and "k_bias" in name}
    load_strict(model, state)
    published = export(model.state_dict())
    for name, shape in names.items():
        assert name in published and shape in (None, tuple(published[name].shape)), name
    load_strict(module(), load(published))
    back = load(published)
    assert back.keys() <= state.keys() and all(torch.equal(back[name], state[name]) for name in back)
    assert all("k_bias" in name for name in state.keys() - back.keys())
