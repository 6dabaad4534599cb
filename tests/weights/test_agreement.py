"""Published weights are compared with their config.json before a tensor is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn
from transformers import CLIPConfig, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM, T5Config
from transformers import T5ForConditionalGeneration as PublishedT5

from lit_mm.checkpoints.origins import Origins
from lit_mm.errors import UserError
from lit_mm.language.llama import Llama
from lit_mm.language.pretrained import Pretrained
from lit_mm.language.t5 import T5
from lit_mm.stages.parts import Parts
from lit_mm.vision.dual import DualEncoder
from lit_mm.vision.timm_encoder import TimmEncoder
from lit_mm.vision.vit import ViT
from lit_mm.weights.source import check_local_config, load_part
from tests.language.test_pretrained import KINDS, LLAMA3, config_of

PATH = "model.init_args.language.init_args"
LLAMA = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 40,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
}
CLIP = {
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 96,
}
T5_SIZES = {"d_model": 32, "num_layers": 2, "num_heads": 4, "d_kv": 8, "d_ff": 48, "vocab_size": 40}
FLAN_T5 = {**T5_SIZES, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
TINY_EVA = {"embed_dim": 24, "depth": 2, "num_heads": 3}


def llama(**options: Any) -> Llama:
    sizes = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn_width": 48, "vocab_size": 40}
    return Llama(**(sizes | {"rope_theta": 5e5} | options))


def vit(**options: Any) -> ViT:
    return ViT(**({"image_size": 16, "patch": 4, "width": 24, "layers": 2, "heads": 3} | options))


def t5(**options: Any) -> T5:
    return T5(**({"width": 32, "layers": 2, "heads": 4, "ffn_width": 48, "vocab_size": 40} | options))


def rope(**changes: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5} | changes}


def described(folder: Path, config: dict[str, Any], changes: dict[str, Any] | None = None) -> Path:
    """A folder with a config.json and no weights."""
    (folder / "config.json").write_text(json.dumps(config | (changes or {})))
    return folder


def refusal(part: nn.Module, reference: str) -> str:
    """The message by which loading a part is refused."""
    with pytest.raises(UserError) as caught:
        load_part(part, reference, "language")
    assert len(str(caught.value).splitlines()) == 2
    return str(caught.value)


# --- Llama -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "key", "numbers", "cure"),
    [
        ({"hidden_size": 64}, "hidden_size", "64 there and 32", "width: 64"),
        ({"num_hidden_layers": 3}, "num_hidden_layers", "3 there and 2", "layers: 3"),
        ({"num_attention_heads": 8}, "num_attention_heads", "8 there and 4", "heads: 8"),
        ({"num_key_value_heads": 4}, "num_key_value_heads", "4 there and 2", "kv_heads: 4"),
        ({"head_dim": 16}, "head_dim", "16 there and 8", "head_width: 16"),
        ({"intermediate_size": 64}, "intermediate_size", "64 there and 48", "ffn_width: 64"),
        ({"vocab_size": 48}, "vocab_size", "48 there and 40", "vocab_size: 48"),
        (rope(rope_theta=1e4), "rope_theta", "10000.0 there and 500000.0", "rope_theta: 10000.0"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps", "1e-06 there and 1e-05", "norm_eps: 1e-06"),
        ({"attention_bias": True}, "attention_bias", "true there and false", "attention_bias: true"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings", "true there and false", "tie_embeddings: true"),
        ({"hidden_act": "gelu"}, "hidden_act", "gelu there and silu", "Pretrained"),
        ({"mlp_bias": True}, "mlp_bias", "true there and false", "Pretrained"),
        ({"rope_parameters": LLAMA3}, "rope_type", "llama3 there and default", "Pretrained"),
        (rope(partial_rotary_factor=0.5), "partial_rotary_factor", "0.5 there and 1.0", "Pretrained"),
        ({"model_type": "gemma"}, "model_type", "gemma there and llama", "Pretrained"),
        ({"model_type": "mistral", "sliding_window": 64}, "sliding_window", "64 there and max_positions 128", "set"),
        (rope(rope_type="dynamic", factor=2.0), "max_position_embeddings", "64 there and max_positions 128", "set"),
    ],
)
def test_a_llama_is_refused_by_each_number_of_its_config(
    changes: dict[str, Any], key: str, numbers: str, cure: str, tmp_path: Path
) -> None:
    config = LLAMA | {"model_type": "llama", "max_position_embeddings": 64}
    message = refusal(llama(max_positions=128), f"llama:{described(tmp_path, config, changes)}")
    assert f"{key} is {numbers} in the recipe: " in message and cure in message
    assert (f"{PATH}.{cure}" in message) == (": " in cure)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (LLAMA | {"model_type": "mistral", "sliding_window": 4096}, {}),
        (LLAMA | {"model_type": "llama"} | rope(rope_type="dynamic", factor=2.0), {"max_positions": 64}),
        (LLAMA | {"model_type": "internlm3"}, {}),
        ({"model_type": "llava", "text_config": LLAMA | {"model_type": "llama"}}, {}),
        (
            {k: v for k, v in LLAMA.items() if k not in ("head_dim", "rope_parameters")}
            | {"model_type": "internlm2", "rope_theta": 5e5, "bias": False},
            {},
        ),
        (
            {
                **{key: LLAMA[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")},
                **{"model_type": "internlm", "intermediate_size": 48, "vocab_size": 40, "rms_norm_eps": 1e-6},
                **{"bias": True, "rotary": {"base": 10000, "type": "dynamic"}, "max_position_embeddings": 2048},
            },
            {"kv_heads": 4, "attention_bias": True, "rope_theta": 1e4, "norm_eps": 1e-6, "max_positions": 2048},
        ),
        (
            {
                **{key: LLAMA[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")},
                **{"model_type": "qwen", "intermediate_size": 96, "vocab_size": 40, "layer_norm_epsilon": 1e-6},
                **{"rotary_emb_base": 10000, "seq_length": 2048, "use_dynamic_ntk": True, "no_bias": True},
            },
            {"kv_heads": 4, "attention_bias": "qkv", "rope_theta": 1e4, "norm_eps": 1e-6, "max_positions": 8192},
        ),
    ],
    ids=lambda value: value.get("model_type", "") if isinstance(value, dict) else "",
)
def test_configs_of_other_decoders_that_llama_computes_agree(
    config: dict[str, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    check_local_config(llama(**options), f"llama:{described(tmp_path, config)}", "language", PATH)


def test_a_folder_of_transformers_agrees_and_is_loaded(tmp_path: Path) -> None:
    published = LlamaForCausalLM(LlamaConfig(**LLAMA))
    published.save_pretrained(tmp_path)
    part = llama()
    load_part(part, f"llama:{tmp_path}", "language")
    assert torch.equal(part.lm.lm_head.weight, published.lm_head.weight)
    (tmp_path / "config.json").unlink()
    load_part(llama(rope_theta=1e4), f"llama:{tmp_path}", "language")  # without a config nothing is compared


def test_a_published_name_is_compared_if_its_config_is_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("owner/decoder", "owner/de coder"):
        check_local_config(llama(), f"llama:{name}", "language", PATH)  # nothing is there yet
    snapshot = tmp_path / "models--owner--decoder/snapshots/0123"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--owner--decoder/refs").mkdir()
    (tmp_path / "models--owner--decoder/refs/main").write_text("0123")
    described(snapshot, LLAMA | {"model_type": "llama"}, {"rms_norm_eps": 1e-6})
    with pytest.raises(UserError, match="rms_norm_eps is 1e-06 there"):
        check_local_config(llama(), "llama:owner/decoder", "language", PATH)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "hidden_size": "wide"},
        {"model_type": "llama", "hidden_size": 33},
        {"model_type": "llava", "text_config": {"model_type": "nothing"}},
    ],
)
def test_a_config_that_transformers_refuses_is_a_mistake_of_the_user(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="transformers refuses the config of this ll"):
        load_part(llama(), f"llama:{described(tmp_path, config)}", "language")


def test_every_difference_is_counted_and_three_are_described(tmp_path: Path) -> None:
    changes = {"hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 48, "rms_norm_eps": 1e-6}
    message = refusal(llama(), f"llama:{described(tmp_path, LLAMA | {'model_type': 'llama'}, changes)}")
    assert message.count(" there and ") == 3 and message.endswith("; and 1 more")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, {"rope_theta": 1e6}),
        ({"rms_norm_eps": 1e-6}, {"norm_eps": 1e-6}),
        ({"attention_bias": True}, {"attention_bias": True}),
        ({"model_type": "qwen2"}, {"attention_bias": "qkv"}),
        ({"tie_word_embeddings": True}, {"tie_embeddings": True}),
        ({"head_dim": 16}, {"head_width": 16}),
        ({"num_key_value_heads": 4}, {"kv_heads": 4}),
        ({"vocab_size": 48}, {"vocab_size": 48}),
    ],
)
def test_a_llama_takes_the_numbers_of_its_config(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    config = LLAMA | {"model_type": "llama", "tie_word_embeddings": False} | changes
    sizes = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn_width": 48, "vocab_size": 40}
    numbers = {"rope_theta": 5e5, "norm_eps": 1e-5, "attention_bias": False, "tie_embeddings": False}
    arguments = Llama.published_arguments(config, ())
    assert arguments == sizes | numbers | expected
    with torch.device("meta"):
        assert Llama(**arguments).compare_config(config) == []


@pytest.mark.parametrize("kind", ["gemma", "clip_vision_model"])
def test_a_config_of_another_kind_gives_no_arguments(kind: str) -> None:
    config = {"model_type": kind, "hidden_size": 32}
    assert Llama.published_arguments(config, ()) == T5.published_arguments(config, ()) == {}
    assert kind == "clip_vision_model" or ViT.published_arguments(config, ()) == {}


# --- decoders of transformers ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_agrees_with_the_config_that_it_was_built_from(kind: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        language = Pretrained(config_of(kind))
    language.lm.config.save_pretrained(tmp_path)
    check_local_config(language, f"transformers:{tmp_path}", "language", PATH)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"num_attention_heads": 8}),
        ("llama", {"rope_parameters": LLAMA3}),
        ("llama", {"model_type": "mistral"}),
        ("mistral", {"sliding_window": 7}),
        ("gemma2", {"final_logit_softcapping": 30.0}),
        ("gemma3_text", {"layer_types": ["full_attention", "full_attention"]}),
        ("gemma3_text", {"hidden_activation": "silu"}),
        ("mixtral", {"num_experts_per_tok": 1}),
        ("opt", {"activation_function": "gelu"}),
        ("opt", {"do_layer_norm_before": False}),
        ("persimmon", {"layer_norm_eps": 1e-6}),
        ("qwen3", {"rms_norm_eps": 1e-5}),
        ("smollm3", {"no_rope_layers": [0, 1]}),
    ],
)
def test_a_decoder_is_refused_by_each_number_of_its_config(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    with torch.device("meta"):
        language = Pretrained(config_of(kind))
    message = refusal(language, f"transformers:{described(tmp_path, config_of(kind), changes)}")
    ((key, value),) = changes.items()
    assert f"{key} is " in message
    assert f"set {PATH}.config.{key}: " in message
    assert isinstance(value, dict) or f"{str(value).lower() if value is False else value} there" in message


def test_a_decoder_by_a_file_is_pointed_to_the_file_of_its_weights(tmp_path: Path) -> None:
    recipe, weights = tmp_path / "recipe", tmp_path / "weights"
    recipe.mkdir()
    weights.mkdir()
    with torch.device("meta"):
        language = Pretrained(str(described(recipe, config_of("qwen3"))))
    message = refusal(language, f"transformers:{described(weights, config_of('qwen3'), {'rms_norm_eps': 0.1})}")
    assert "rms_norm_eps is 0.1 there and 1e-06 in the recipe: set `config` to the folder of the weights" in message


# --- T5 --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("key", "value", "present", "cure"),
    [
        ("d_model", 64, 32, "width: 64"),
        ("num_layers", 3, 2, "layers: 3"),
        ("num_decoder_layers", 1, 2, "decoder_layers: 1"),
        ("num_heads", 2, 4, "heads: 2"),
        ("d_kv", 16, 8, "head_width: 16"),
        ("d_ff", 64, 48, "ffn_width: 64"),
        ("vocab_size", 48, 40, "vocab_size: 48"),
        ("relative_attention_num_buckets", 16, 32, "buckets: 16"),
        ("relative_attention_max_distance", 64, 128, "max_distance: 64"),
        ("layer_norm_epsilon", 1e-5, 1e-6, "norm_eps: 1e-05"),
        ("decoder_start_token_id", 3, 0, "start_id: 3"),
        ("feed_forward_proj", "relu", "gated-gelu", "T5 1.0 is not read"),
        ("tie_word_embeddings", True, False, "T5 1.0 is not read"),
        ("model_type", "bart", "t5", "another part"),
    ],
)
def test_a_t5_is_refused_by_each_number_of_its_config(
    key: str, value: Any, present: Any, cure: str, tmp_path: Path
) -> None:
    message = refusal(t5(), f"t5:{described(tmp_path, FLAN_T5 | {'model_type': 't5'}, {key: value})}")
    assert f"{key} is {str(value).lower() if value is True else value} there and " in message
    assert str(present).lower() in message and cure in message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"num_decoder_layers": 1}, {"decoder_layers": 1}),
        ({"d_kv": 16}, {"head_width": 16}),
        ({"relative_attention_num_buckets": 16}, {"buckets": 16}),
        ({"relative_attention_max_distance": 64}, {"max_distance": 64}),
        ({"layer_norm_epsilon": 1e-5}, {"norm_eps": 1e-5}),
        ({"decoder_start_token_id": 3}, {"start_id": 3}),
        ({"d_ff": 64}, {"ffn_width": 64}),
    ],
)
def test_a_t5_takes_the_numbers_of_its_config(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    config = FLAN_T5 | {"model_type": "t5"} | changes
    arguments = T5.published_arguments(config, ())
    sizes = {"width": 32, "layers": 2, "heads": 4, "ffn_width": 48, "vocab_size": 40}
    assert arguments == sizes | expected
    assert T5.published_arguments(config, ("config",)) == {}
    with torch.device("meta"):
        assert T5(**arguments).compare_config(config) == []


@pytest.mark.parametrize("by", ["folder", "mapping"])
def test_a_t5_takes_its_numbers_from_a_folder_of_transformers(by: str, tmp_path: Path) -> None:
    published = PublishedT5(T5Config(**FLAN_T5, num_decoder_layers=1, relative_attention_num_buckets=16))
    published.config.save_pretrained(tmp_path)
    head = torch.randn_like(published.lm_head.weight)  # transformers ties it, the published files have their own
    tensors = {name: tensor for name, tensor in published.state_dict().items() if "embed_tokens" not in name}
    save_file(tensors | {"lm_head.weight": head}, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    keys = ("model_type", *T5_SIZES, "num_decoder_layers", "feed_forward_proj", "relative_attention_num_buckets")
    mapping = {key: config[key] for key in keys} | {"tie_word_embeddings": False}
    part = T5(config=str(tmp_path) if by == "folder" else mapping, activation="gelu")
    assert (part.num_layers, part.num_decoder_layers, part.head_width, part.numbers["buckets"]) == (2, 1, 8, 16)
    load_part(part, f"t5:{tmp_path}", "language")
    assert torch.equal(part.lm.shared.weight, published.shared.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 2}, "num_heads is 4 there and 2 in the recipe"),
        ({"config": {"model_type": "bart"}}, "`model_type` of `config` is 'bart'"),
        ({"config": {"model_type": "t5", "d_modle": 1}}, "d_modle"),
        ({"config": None}, "without a `config`, `width`, `layers`, `heads`, `ffn_width`, `vocab_size` must be set"),
    ],
)
def test_a_t5_with_other_numbers_than_its_config_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        T5(**({"config": FLAN_T5 | {"model_type": "t5"}} | options))


# --- vision encoders -------------------------------------------------------------------------------------------------
CLIP_ROWS = [
    ("hidden_size", 48, "width: 48"),
    ("num_hidden_layers", 3, "layers: 3"),
    ("num_attention_heads", 4, "heads: 4"),
    ("intermediate_size", 48, "ffn_width: 48"),
    ("patch_size", 2, "patch: 2"),
    ("image_size", 32, "image_size: 32"),
    ("hidden_act", "gelu", "activation: gelu"),
    ("layer_norm_eps", 1e-6, "eps: 1e-06"),
]


@pytest.mark.parametrize("whole", [False, True], ids=["encoder", "whole"])
@pytest.mark.parametrize(("key", "value", "cure"), CLIP_ROWS, ids=[row[0] for row in CLIP_ROWS])
def test_a_clip_encoder_is_refused_by_each_number_of_its_config(
    key: str, value: Any, cure: str, whole: bool, tmp_path: Path
) -> None:
    vision = CLIP | {"model_type": "clip_vision_model", key: value}
    config = {"model_type": "clip", "vision_config": vision} if whole else vision
    with pytest.raises(UserError) as caught:
        load_part(vit(), f"clip:{described(tmp_path, config)}", "vision")
    assert f"{key} is {value} there and " in str(caught.value)
    assert f"set model.init_args.vision.init_args.{cure}" in str(caught.value)


def test_an_encoder_of_another_kind_is_refused(tmp_path: Path) -> None:
    message = refusal(vit(), f"clip:{described(tmp_path, {'model_type': 'siglip_vision_model'})}")
    assert "model_type is siglip_vision_model there and clip_vision_model in the recipe" in message


def test_a_clip_encoder_agrees_at_the_size_of_its_checkpoint(tmp_path: Path) -> None:
    published = CLIPVisionModel(CLIPVisionConfig(**CLIP))
    published.save_pretrained(tmp_path)
    load_part(vit(image_size=32, position_size=16), f"clip:{tmp_path}", "vision")
    CLIPConfig(vision_config=CLIP).save_pretrained(tmp_path)
    load_part(vit(), f"clip:{tmp_path}", "vision")


def test_the_arguments_of_an_encoder_inside_another_part_are_named_by_their_path(tmp_path: Path) -> None:
    config = CLIP | {"model_type": "clip_vision_model", "hidden_act": "gelu"}
    high = vit(image_size=32, position_size=16, weights=f"clip:{described(tmp_path, config)}")
    network = nn.ModuleDict({"vision": DualEncoder(vit(), high)})
    with pytest.raises(
        UserError, match=r"'second_vision'.*\n.* set model.init_args.vision.init_args.high.init_args.act"
    ):
        Origins(Parts(network)).check_configs()


def test_the_encoder_of_qwen_vl_agrees_with_its_section_of_the_config(tmp_path: Path) -> None:
    visual = {"width": 24, "layers": 2, "heads": 3, "mlp_ratio": 4.0, "patch_size": 14, "image_size": 448}
    config = {"model_type": "qwen", "visual": visual}
    sizes = {"image_size": 224, "patch": 14, "class_token": False}
    reference = f"qwen-vl-vision:{described(tmp_path, config)}"
    check_local_config(vit(activation="gelu", eps=1e-6, **sizes), reference, "vision", "")
    with pytest.raises(UserError, match=r"hidden_act is gelu there.*layer_norm_eps is 1e-06 there"):
        check_local_config(vit(**sizes), reference, "vision", "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "vit_base_patch32_clip_224"}, "architecture is vit_base_patch32_clip_224 there and vit_base"),
        ({"model_args": TINY_EVA | {"num_heads": 6}}, "num_heads is 6 there and 3 in the recipe"),
        ({"model_args": {"embed_dim": 24, "depth": 2}}, "num_heads is null there and 3 in the recipe"),
        ({"pretrained_cfg": {"mean": [0.5, 0.5, 0.5]}}, r"mean is \[0.5, 0.5, 0.5\] there and \[0.48"),
        ({"pretrained_cfg": {"std": [0.5, 0.5, 0.5]}}, r"std is \[0.5, 0.5, 0.5\] there and \[0.26"),
        ({"pretrained_cfg": {"input_size": [3, 48, 48]}}, "input_size is 48 there and 32 in the recipe"),
        (
            {"architecture": None, "model_type": "clip_vision_model", **CLIP, "patch_size": 16, "image_size": 32},
            "hidden_act is quick_gelu there and gelu in the recipe: take another `name`",
        ),
    ],
)
def test_an_encoder_of_timm_is_refused_by_each_number_of_its_config(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    name = "vit_base_patch16_clip_224"
    published = timm.create_model(name, img_size=32, num_classes=0, **TINY_EVA)
    save_for_hf(published, tmp_path, safe_serialization=True)
    reference = f"timm:{tmp_path}"
    with torch.device("meta"):
        part = TimmEncoder(name, image_size=32, overrides=TINY_EVA)
    load_part(part, reference, "vision")
    config = json.loads((tmp_path / "config.json").read_text()) | changes
    described(tmp_path, {key: value for key, value in config.items() if value is not None})
    with pytest.raises(UserError, match=message):
        load_part(part, reference, "vision")


@pytest.mark.parametrize(
    ("changes", "written", "expected"),
    [
        ({}, (), {}),
        ({"hidden_act": "gelu"}, (), {"activation": "gelu"}),
        ({"layer_norm_eps": 1e-6}, (), {"eps": 1e-6}),
        ({"intermediate_size": 48}, (), {"ffn_width": 48}),
        ({"intermediate_size": 48}, ("mlp_ratio",), {}),
        ({"image_size": 32}, (), {"image_size": 32}),
    ],
)
def test_a_vit_takes_the_numbers_of_its_config(
    changes: dict[str, Any], written: tuple[str, ...], expected: dict[str, Any]
) -> None:
    config = CLIP | {"model_type": "clip_vision_model"} | changes
    arguments = ViT.published_arguments(config, written)
    sizes = {"image_size": 16, "patch": 4, "width": 24, "layers": 2, "heads": 3}
    assert arguments == sizes | {"activation": "quick_gelu", "eps": 1e-5} | expected
    with torch.device("meta"):
        assert written or ViT(**arguments).compare_config(config) == []
