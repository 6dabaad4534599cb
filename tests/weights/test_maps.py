"""Key maps rename published checkpoints completely."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, CLIPVisionModel

from lit_mm.connectors.mlp import MLPProjector
from lit_mm.errors import UserError
from lit_mm.language.llama import Llama
from lit_mm.language.partial_lora import apply_partial_lora
from lit_mm.vision.vit import ViT
from lit_mm.weights.clip import hf_clip_to_vit, openai_clip_to_vit
from lit_mm.weights.convert import load_strict
from lit_mm.weights.internlm2 import internlm2_to_llama, llama_to_llama, split_wqkv
from lit_mm.weights.xcomposer2 import xcomposer2_to_model
from tests.rows import hidden

HEADS = {"heads": 4, "kv_heads": 2}
CLIP = CLIPVisionConfig(
    image_size=16, patch_size=4, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96
)


def llama() -> Llama:
    return Llama(width=32, layers=2, ffn_width=48, vocab_size=40, **HEADS)


def vit() -> ViT:
    return ViT(image_size=16, patch=4, width=24, layers=2, heads=3)


def internlm2(rank: int | None = 3) -> dict[str, Tensor]:
    """A random checkpoint with the names of the release."""
    state = {
        "model.tok_embeddings.weight": torch.randn(40, 32),
        "model.norm.weight": torch.randn(32),
        "output.weight": torch.randn(40, 32),
    }
    shapes = {"attention.wqkv": (64, 32), "attention.wo": (32, 32)}
    shapes |= {"feed_forward.w1": (48, 32), "feed_forward.w3": (48, 32), "feed_forward.w2": (32, 48)}
    for layer in ("model.layers.0", "model.layers.1"):
        state |= {f"{layer}.{norm}.weight": torch.randn(32) for norm in ("attention_norm", "ffn_norm")}
        for name, (rows, columns) in shapes.items():
            state[f"{layer}.{name}.weight"] = torch.randn(rows, columns)
            if rank:
                state[f"{layer}.{name}.Plora_A.weight"] = torch.randn(rank, columns)
                state[f"{layer}.{name}.Plora_B.weight"] = torch.randn(rows, rank)
    return state


def test_packed_rows_split_by_key_value_head() -> None:
    packed = torch.tensor([[0.0], [1], [10], [20], [2], [3], [11], [21]])  # q0 q1 k0 v0, q2 q3 k1 v1
    q, k, v = split_wqkv(packed, **HEADS)
    assert (q[:, 0].tolist(), k[:, 0].tolist(), v[:, 0].tolist()) == ([0, 1, 2, 3], [10, 11], [20, 21])
    with pytest.raises(UserError, match="7 rows"):
        split_wqkv(packed[:7], **HEADS)


def test_internlm2_fits_with_and_without_partial_lora() -> None:
    for language, state in ((apply_partial_lora(llama(), rank=3), internlm2()), (llama(), internlm2(rank=None))):
        ours = internlm2_to_llama(state, **HEADS)
        load_strict(language, ours)
        loaded = language.state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in ours.items())


def test_a_base_checkpoint_loads_below_partial_lora() -> None:
    language, state = apply_partial_lora(llama(), rank=3), internlm2(rank=None)
    ours = internlm2_to_llama(state, **HEADS, partial_lora=True)
    with pytest.raises(UserError, match="lora_a"):
        load_strict(language, ours)
    load_strict(language, ours, allow_missing=("lora_",))
    assert torch.equal(
        language.decoder_layers[1].mlp.up_proj.base.weight, state["model.layers.1.feed_forward.w3.weight"]
    )


def test_a_hugging_face_llama_fits_with_and_without_partial_lora() -> None:
    source = llama()
    published = source.lm.state_dict() | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}
    plain, wrapped = llama(), apply_partial_lora(llama(), rank=3)
    load_strict(plain, llama_to_llama(published))
    load_strict(wrapped, llama_to_llama(published, partial_lora=True), allow_missing=("lora_",))
    ids = torch.arange(6)
    for language in (plain, wrapped):
        assert torch.equal(hidden(language, [ids]), hidden(source, [ids]))


def test_openai_and_hugging_face_names_of_one_clip_give_the_same_vit() -> None:
    theirs = CLIPVisionModel(CLIP).state_dict()
    ours = hf_clip_to_vit(theirs)
    openai = {
        "visual.proj": torch.zeros(24, 8),
        "visual.ln_post.weight": torch.ones(24),
        "text_projection": torch.ones(1),
    }
    names = {"cls": "class_embedding", "patches.weight": "conv1.weight", "positions": "positional_embedding"}
    names |= {"pre_norm.weight": "ln_pre.weight", "pre_norm.bias": "ln_pre.bias"}
    parts = {"norm1": "ln_1", "norm2": "ln_2", "out": "attn.out_proj", "fc1": "mlp.c_fc", "fc2": "mlp.c_proj"}
    for name, tensor in ours.items():
        if name in names:
            openai[f"visual.{names[name]}"] = tensor
            continue
        _, layer, part, kind = name.split(".")
        ending = f"attn.in_proj_{kind}" if part == "qkv" else f"{parts[part]}.{kind}"
        openai[f"visual.transformer.resblocks.{layer}.{ending}"] = tensor
    back = openai_clip_to_vit(openai)
    assert back.keys() == ours.keys() and all(torch.equal(back[name], ours[name]) for name in ours)
    load_strict(vit(), back)


def test_the_vision_half_of_a_whole_clip_is_what_is_published_alone() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    text = CLIPTextConfig(vocab_size=30, max_position_embeddings=8, **sizes)
    whole = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=CLIP.to_dict(), projection_dim=12))
    alone = CLIPVisionModel(CLIP)
    alone.load_state_dict({n.removeprefix("vision_model."): t for n, t in whole.vision_model.state_dict().items()})
    state = whole.state_dict() | {"text_model.embeddings.position_ids": torch.arange(8)[None]}
    assert {"logit_scale", "visual_projection.weight", "text_projection.weight"} < state.keys()
    ours, expected = hf_clip_to_vit(state), hf_clip_to_vit(alone.state_dict())
    assert ours.keys() == expected.keys() and all(torch.equal(ours[name], expected[name]) for name in ours)
    load_strict(vit(), ours)
    for odd in ("text_model.head.weight", "visual_projection.bias", "vision_model.logit_scale"):
        with pytest.raises(UserError, match=odd):
            load_strict(vit(), hf_clip_to_vit(state | {odd: torch.zeros(1)}))


def test_a_block_without_its_keys_is_refused() -> None:
    state = {
        name: t for name, t in CLIPVisionModel(CLIP).state_dict().items() if "1.self_attn.k_proj.weight" not in name
    }
    with pytest.raises(UserError, match=r"blocks\.1\.qkv\.weight.*\['q', 'v'\]"):
        hf_clip_to_vit(state)


class Family(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Module()
        self.network.vision, self.network.connector = vit(), MLPProjector(24, 32)
        self.network.language = apply_partial_lora(llama(), rank=3)


def xcomposer2() -> dict[str, Tensor]:
    vision = CLIPVisionModel(CLIP).state_dict()
    state = {f"vit.vision_tower.vision_model.{name.removeprefix('vision_model.')}": t for name, t in vision.items()}
    state["vit.vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    state |= {f"vision_proj.{name}": t for name, t in MLPProjector(24, 32).mlp.state_dict().items()}
    return state | internlm2()


def test_a_whole_xcomposer2_checkpoint_leaves_nothing_over() -> None:
    family, state = Family(), xcomposer2()
    load_strict(family, xcomposer2_to_model(state, **HEADS))
    assert torch.equal(family.network.connector.mlp[2].bias, state["vision_proj.2.bias"])
    assert torch.equal(family.network.language.lm.lm_head.weight, state["output.weight"])


def test_an_entry_no_map_knows_is_named() -> None:
    with pytest.raises(UserError, match="plora_glb_GN"):
        load_strict(Family(), xcomposer2_to_model(xcomposer2() | {"plora_glb_GN": torch.zeros(1)}, **HEADS))
