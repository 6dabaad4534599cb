"""The key maps of Qwen-VL and XComposer2-4KHD rename published checkpoints completely."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from lit_mm.connectors.resampler import NormalisedResampler
from lit_mm.errors import UserError
from lit_mm.families import QwenVL, XComposer2HD
from lit_mm.language.llama import Llama
from lit_mm.vision.vit import ViT
from lit_mm.weights.convert import load_strict
from lit_mm.weights.qwen_vl import per_head_to_thirds, qwen_to_llama, qwen_vl_to_model
from lit_mm.weights.xcomposer2_4khd import xcomposer2_4khd_to_model
from tests.rows import logits

SIZES = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 4, "ffn_width": 48, "vocab_size": 60}


def language() -> Llama:
    return Llama(**SIZES, norm_eps=1e-6, attention_bias="qkv")


def reference() -> Qwen2ForCausalLM:
    """transformers' Qwen2, which has the architecture of Qwen-7B: biases on q, k and v, SwiGLU."""
    model = Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=48,
            vocab_size=60,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=False,
        )
    ).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def qwen_7b(model: Qwen2ForCausalLM) -> dict[str, Tensor]:
    """The weights of the reference under the names of Qwen-7B's release, with the MLP c_proj(w1(x) * silu(w2(x)))."""
    own = model.state_dict()
    state = {
        "transformer.wte.weight": own["model.embed_tokens.weight"],
        "transformer.ln_f.weight": own["model.norm.weight"],
        "lm_head.weight": own["lm_head.weight"],
        "transformer.rotary_emb.inv_freq": torch.ones(4),
    }
    for layer in range(2):
        theirs, released = f"model.layers.{layer}", f"transformer.h.{layer}"
        for kind in ("weight", "bias"):
            packed = [own[f"{theirs}.self_attn.{which}_proj.{kind}"] for which in "qkv"]
            state[f"{released}.attn.c_attn.{kind}"] = torch.cat(packed)
        state |= {
            f"{released}.attn.c_proj.weight": own[f"{theirs}.self_attn.o_proj.weight"],
            f"{released}.mlp.w1.weight": own[f"{theirs}.mlp.up_proj.weight"],
            f"{released}.mlp.w2.weight": own[f"{theirs}.mlp.gate_proj.weight"],
            f"{released}.mlp.c_proj.weight": own[f"{theirs}.mlp.down_proj.weight"],
            f"{released}.ln_1.weight": own[f"{theirs}.input_layernorm.weight"],
            f"{released}.ln_2.weight": own[f"{theirs}.post_attention_layernorm.weight"],
        }
    return state


def visual() -> dict[str, Tensor]:
    """A random tower of 2 blocks with the names of the release: width 24, 3 heads, 4 queries of width 32."""
    shapes = {"conv1.weight": (24, 3, 14, 14), "positional_embedding": (16, 24), "proj": (32, 32)}
    shapes |= {f"ln_pre.{kind}": (24,) for kind in ("weight", "bias")}
    shapes |= {f"ln_post.{kind}": (32,) for kind in ("weight", "bias")}
    for block in (0, 1):
        prefix = f"transformer.resblocks.{block}"
        shapes |= {f"{prefix}.{norm}.{kind}": (24,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")}
        for name, (rows, columns) in {
            "attn.in_proj": (72, 24),
            "attn.out_proj": (24, 24),
            "mlp.c_fc": (40, 24),
            "mlp.c_proj": (24, 40),
        }.items():
            shapes |= {f"{prefix}.{name}.weight": (rows, columns), f"{prefix}.{name}.bias": (rows,)}
    pool = {"query": (4, 32), "pos_embed": (4, 32), "kv_proj.weight": (32, 24)}
    pool |= {f"{norm}.{kind}": (32,) for norm in ("ln_q", "ln_kv") for kind in ("weight", "bias")}
    pool |= {"attn.in_proj_weight": (96, 32), "attn.in_proj_bias": (96,)}
    pool |= {"attn.out_proj.weight": (32, 32), "attn.out_proj.bias": (32,)}
    shapes |= {f"attn_pool.{name}": shape for name, shape in pool.items()}
    return {f"transformer.visual.{name}": torch.randn(shape) for name, shape in shapes.items()}


def family() -> QwenVL:
    vision = ViT(56, 14, 24, 2, 3, ffn_width=40, activation="gelu", eps=1e-6, class_token=False, any_size=True)
    return QwenVL(vision, language(), "nano", 56, lambda d, e: NormalisedResampler(d, e, grid_size=2, heads=4))


def test_packed_rows_are_sorted_by_head() -> None:
    packed = torch.tensor([[0.0], [1], [10], [11], [20], [21], [2], [3], [12], [13], [22], [23]])  # q k v of each head
    assert per_head_to_thirds(packed, 2)[:, 0].tolist() == [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]
    with pytest.raises(UserError, match="12 rows, which 3 x 8 heads do not divide"):
        per_head_to_thirds(packed, 8)


@torch.inference_mode()
def test_qwen_7b_is_a_llama_with_biases_on_q_k_and_v() -> None:
    theirs, ours = reference(), language().eval()
    load_strict(ours, qwen_to_llama(qwen_7b(theirs)))
    ids = torch.randint(60, (2, 9))
    # fp32, the same operators in another order: measured 2e-5 on logits of size 60
    torch.testing.assert_close(logits(ours, list(ids)), theirs(ids).logits.flatten(0, 1), rtol=1e-5, atol=1e-4)


def test_a_whole_qwen_vl_fits() -> None:
    model, state = family(), visual() | qwen_7b(reference())
    load_strict(model, qwen_vl_to_model(state, heads=3))  # raises for a name that is left over on either side
    assert torch.equal(model.network.language.lm.model.embed_tokens.weight, state["transformer.wte.weight"])


def test_the_projections_matrix_is_turned_since_the_release_multiplies_from_the_right() -> None:
    model, state = family(), visual() | qwen_7b(reference())
    load_strict(model, qwen_vl_to_model(state, heads=3))
    connector, x = model.network.connector, torch.randn(1, 16, 24)
    expected = connector.norm(connector.resampler(x)) @ state["transformer.visual.proj"]
    torch.testing.assert_close(connector(x), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    ["transformer.visual.ln_post.weight", "transformer.visual.attn_pool.query", "transformer.h.1.attn.c_attn.bias"],
)
def test_what_is_missing_or_left_over_is_named(name: str) -> None:
    state = visual() | qwen_7b(reference())
    other = {(f"{key}_new" if key == name else key): tensor for key, tensor in state.items()}
    with pytest.raises(UserError, match="are not in the checkpoint"):
        load_strict(family(), qwen_vl_to_model(other, heads=3))
    with pytest.raises(UserError, match=r"_new"):
        load_strict(family(), qwen_vl_to_model(state | {f"{name}_new": state[name]}, heads=3))


def test_an_encoder_without_class_token_takes_a_clip_checkpoint() -> None:
    clip = ViT(56, 14, 24, 1, 3)
    vit = ViT(56, 14, 24, 1, 3, class_token=False, any_size=True)
    load_strict(vit, clip.state_dict())
    assert torch.equal(vit.positions, clip.positions[1:])


def test_newline_and_separator_of_xcomposer2_4khd_are_not_swapped() -> None:
    model = XComposer2HD(ViT(56, 14, 8, 1, 2), Llama(16, 1, 2, 1, 24, 60), "nano", tile=56, rank=2)
    state = {"plora_sub_GN": torch.randn(1, 1, 1, 32), "plora_glb_GN": torch.randn(1, 1, 32)}
    ours = xcomposer2_4khd_to_model(state, heads=2, kv_heads=1)
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        f"network.connector.{name}": model.network.connector.newline.shape for name in ("newline", "separator")
    }
    assert torch.equal(ours["network.connector.newline"], state["plora_sub_GN"].flatten())
