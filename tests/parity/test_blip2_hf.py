"""BLIP-2 equals transformers' models from pixels to logits; its key maps and InstructBLIP's lose nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_mm.connectors.qformer_paired import PairedQFormer
from lit_mm.language.llama import Llama
from lit_mm.language.pretrained import Pretrained
from lit_mm.language.t5 import T5
from lit_mm.samples.batch import IGNORE, Batch, Target, Texts
from lit_mm.vision.timm_encoder import TimmEncoder
from lit_mm.weights.blip2 import blip2_to_hf, hf_to_blip2
from lit_mm.weights.convert import load_strict

RETRIEVAL = "blip2_hf_itm_tiny"
CAPTIONERS = ("blip2_hf_opt_tiny", "blip2_hf_t5_tiny")
INSTRUCTED = ("instructblip_hf_tiny", "instructblip_hf_t5_tiny")  # `test_instructblip_hf` has their logits


def language_of(config: dict[str, Any]) -> nn.Module | None:
    """The language model of a config; None for a retrieval model."""
    if config["model_type"] == "opt":
        keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "ffn_dim", "word_embed_proj_dim")
        keys += ("model_type", "vocab_size", "max_position_embeddings", "activation_function", "do_layer_norm_before")
        return Pretrained({key: config[key] for key in keys})
    if config["model_type"] == "t5":
        return T5(
            config["d_model"],
            config["num_layers"],
            config["num_heads"],
            config["d_ff"],
            config["vocab_size"],
            decoder_layers=config["num_decoder_layers"],
            head_width=config["d_kv"],
            activation=config["dense_act_fn"],
            buckets=config["relative_attention_num_buckets"],
            max_distance=config["relative_attention_max_distance"],
            norm_eps=config["layer_norm_epsilon"],
            start_id=config["decoder_start_token_id"],
        )
    if config["model_type"] == "llama":
        return Llama(
            width=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            ffn_width=config["intermediate_size"],
            vocab_size=config["vocab_size"],
            norm_eps=config["rms_norm_eps"],
            rope_theta=config["rope_parameters"]["rope_theta"],
            max_positions=config["max_position_embeddings"],
        )
    return None


def build(golden: Any, name: str) -> nn.ModuleDict:
    """The parts of a golden model with its weights."""
    config = golden.json(name)["config"]
    vision, qformer = config["vision_config"], config["qformer_config"]
    weights = hf_to_blip2(golden.tensors(name, "w."))
    reads = any(".words." in key for key in weights)
    parts: dict[str, nn.Module] = {
        "vision": TimmEncoder(
            "eva_giant_patch14_clip_224",
            vision["image_size"],
            drop_cls=False,
            overrides={
                "patch_size": vision["patch_size"],
                "embed_dim": vision["hidden_size"],
                "depth": vision["num_hidden_layers"],
                "num_heads": vision["num_attention_heads"],
                "mlp_ratio": (vision["intermediate_size"] + 0.5) / vision["hidden_size"],
            },
        ),
        "connector": PairedQFormer(
            vision["hidden_size"],
            config["text_config"].get("hidden_size") or config["text_config"]["d_model"],
            queries=config["num_query_tokens"],
            width=qformer["hidden_size"],
            layers=qformer["num_hidden_layers"],
            heads=qformer["num_attention_heads"],
            ffn_width=qformer["intermediate_size"],
            cross_every=qformer["cross_attention_frequency"],
            vocab_size=qformer["vocab_size"] if reads else None,
            max_positions=qformer["max_position_embeddings"],
            contrast_width=config["image_text_hidden_size"] if name == RETRIEVAL else None,
            reads_text=reads and name != RETRIEVAL,
            norm_eps=vision["layer_norm_eps"],
        ),
    }
    if name != RETRIEVAL and (language := language_of(config["text_config"])) is not None:
        parts["language"] = language
    module = nn.ModuleDict(parts).eval()
    state = {key: value for key, value in weights.items() if key.partition(".")[0] in parts}
    load_strict(module, state, allow_missing=("projection", "temperature") if name == RETRIEVAL else ())
    left = {key for key in weights if key not in state}
    assert all(key.startswith("language.") for key in left), left
    assert not left or "language" not in parts
    return module


def close(golden: Any, name: str, ours: Tensor, theirs: Tensor) -> None:
    tolerance = golden.json(name)["tolerance"]
    torch.testing.assert_close(ours, theirs, rtol=tolerance["float32_rtol"], atol=tolerance["float32_atol"])


def visual_tokens(module: nn.ModuleDict, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the normed features and the visual tokens [V, Q, E]."""
    features = module["vision"](inputs["pixel_values"])
    return module["connector"].norm(features), module["connector"](features, None)


@pytest.mark.parametrize("name", CAPTIONERS)
@torch.inference_mode()
def test_visual_tokens_are_those_of_transformers(golden: Any, name: str) -> None:
    module, inputs, expected = build(golden, name), golden.tensors(name, "in."), golden.tensors(name, "out.")
    features, tokens = visual_tokens(module, inputs)
    close(golden, name, features, expected["vision_last_hidden_state"])
    close(golden, name, tokens, expected["projected_queries"])


@pytest.mark.parametrize("name", CAPTIONERS)
@torch.inference_mode()
def test_logits_and_loss_are_those_of_transformers(golden: Any, name: str) -> None:
    module, inputs, expected = build(golden, name), golden.tensors(name, "in."), golden.tensors(name, "out.")
    language, about = module["language"], golden.json(name)
    _, tokens = visual_tokens(module, inputs)
    real, image = inputs["attention_mask"].bool(), inputs["input_ids"] == about["config"]["image_token_index"]
    row = inputs["input_ids"][real]
    embeds = language.embed(row.masked_fill(image[real], 0))
    embeds[image[real]] = tokens.flatten(0, 1)
    lengths = tuple(real.sum(1).tolist())
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    labels, target = inputs["labels"], None
    if language.writes_target:
        learnt = labels != IGNORE
        target = Target(labels[learnt][None], tuple(learnt.sum(1).tolist()))
        places, logits = torch.arange(int(learnt.sum())), expected["logits"][learnt]
    else:
        places, logits = torch.arange(len(row)), expected["logits"][real]
    batch = Batch(
        ids=row[None],
        lengths=lengths,
        positions=positions,
        visual=torch.zeros(0, dtype=torch.int64),
        bank=torch.zeros(0, dtype=torch.int64),
        supervised=places,
        labels=places,
        sample_ids=(),
        target=target,
    )
    close(golden, name, language.logits(language.learn(embeds[None], batch).hidden), logits)
    if target is not None:
        loss = F.cross_entropy(logits, target.ids[0])
        assert loss.item() == pytest.approx(about["values"]["loss"], rel=1e-4)


@torch.inference_mode()
def test_similarities_and_matching_are_those_of_transformers(golden: Any) -> None:
    module, inputs = build(golden, RETRIEVAL), golden.tensors(RETRIEVAL, "in.")
    expected, connector = golden.tensors(RETRIEVAL, "out."), module["connector"]
    features = connector.norm(module["vision"](inputs["pixel_values"]))
    texts = Texts(inputs["input_ids"], inputs["attention_mask"].bool())
    image, text = connector.encode_image(features), connector.encode_text(texts)
    close(golden, RETRIEVAL, image, expected["image_embeds"])
    close(golden, RETRIEVAL, text, expected["text_embeds"])
    similarity = torch.einsum("nqc,ac->naq", image, text).amax(dim=-1)
    close(golden, RETRIEVAL, similarity, expected["itc_logits_per_image"])
    close(golden, RETRIEVAL, similarity.T, expected["itc_logits_per_text"])
    close(golden, RETRIEVAL, connector.match(features, texts), expected["itm_logits"])


@pytest.mark.parametrize("name", [RETRIEVAL, *CAPTIONERS, *INSTRUCTED])
def test_names_of_transformers_and_back_lose_nothing(golden: Any, name: str) -> None:
    ours = hf_to_blip2(golden.tensors(name, "w."))
    published = blip2_to_hf(ours, instruct=name.startswith("instruct"))
    assert published.keys() == golden.tensors(name, "w.").keys()
    again = hf_to_blip2(published)
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[key], value) for key, value in ours.items())
