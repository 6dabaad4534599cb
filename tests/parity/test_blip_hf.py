"""BLIP's captioner and retrieval model equal those of transformers, with weights through the key map."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_mm.language.med import DECODER, ENCODER, MED
from lit_mm.samples.batch import IGNORE
from lit_mm.vision.timm_vit import TimmViT
from lit_mm.weights.blip import blip_to_network, network_to_blip
from lit_mm.weights.convert import load_strict

CAPTIONER, RETRIEVAL = "blip_hf_tiny", "blip_hf_itm_tiny"
HALF = ("encoder_attention", "decoder_attention", "head")  # what one of the two stacks does not have


def build(config: dict[str, Any]) -> nn.ModuleDict:
    text, vision = config["text_config"], config["vision_config"]
    return nn.ModuleDict(
        {
            "vision": TimmViT(
                vision["image_size"],
                vision["patch_size"],
                vision["hidden_size"],
                vision["num_hidden_layers"],
                vision["num_attention_heads"],
                mlp_ratio=vision["intermediate_size"] / vision["hidden_size"],
                eps=vision["layer_norm_eps"],
            ),
            "text": MED(
                vision["hidden_size"],
                text["vocab_size"],
                text["hidden_size"],
                text["num_hidden_layers"],
                text["num_attention_heads"],
                text["intermediate_size"],
                text["max_position_embeddings"],
                eps=text["layer_norm_eps"],
            ),
        }
    ).eval()


def load(golden: Any, name: str, *missing: str) -> tuple[nn.ModuleDict, dict[str, Tensor]]:
    """Return the model, and the published tensors that are not of vision and text."""
    module = build(golden.json(name)["config"])
    state = blip_to_network(golden.tensors(name, "w."))
    parts = {key: value for key, value in state.items() if key.startswith(("vision.", "text."))}
    load_strict(module, parts, allow_missing=missing)
    return module, {key: value for key, value in state.items() if key not in parts}


def assert_close(golden: Any, name: str, ours: Tensor, theirs: Tensor) -> None:
    tolerance = golden.json(name)["tolerance"]
    torch.testing.assert_close(ours, theirs, rtol=tolerance["float32_rtol"], atol=tolerance["float32_atol"])


@torch.inference_mode()
def test_captioner_equals_transformers_in_features_logits_and_loss(golden: Any) -> None:
    module, rest = load(golden, CAPTIONER, "encoder_attention")
    assert not rest
    given, expected = golden.tensors(CAPTIONER, "in."), golden.tensors(CAPTIONER, "out.")
    features = module["vision"](given["pixel_values"])
    assert_close(golden, CAPTIONER, features, expected["vision_last_hidden_state"])
    real = given["attention_mask"].bool()
    logits = module["text"].logits(module["text"](given["input_ids"], real, DECODER, features))
    assert_close(golden, CAPTIONER, logits[real], expected["logits"][real])
    smoothing = golden.json(CAPTIONER)["config"]["text_config"]["label_smoothing"]
    loss = F.cross_entropy(
        logits[:, :-1].flatten(0, 1),
        given["labels"][:, 1:].flatten(),
        ignore_index=IGNORE,
        label_smoothing=smoothing,
    )
    assert loss.item() == pytest.approx(golden.json(CAPTIONER)["values"]["loss"], rel=1e-4)


@torch.inference_mode()
def test_flat_row_and_cached_steps_give_the_same_logits(golden: Any) -> None:
    module, _ = load(golden, CAPTIONER, "encoder_attention")
    given, expected = golden.tensors(CAPTIONER, "in."), golden.tensors(CAPTIONER, "out.")["logits"]
    real = given["attention_mask"].bool()
    lengths = real.sum(1).tolist()
    row = given["input_ids"][real][None]
    features = module["vision"](given["pixel_values"])
    text = module["text"]
    assert_close(golden, CAPTIONER, text.logits(text.decode(row, lengths, features)), expected[real])
    # one sample's prompt is longer than the other's by one token, so that there is padding
    starts = [2, 1, *[1] * (len(lengths) - 2)]
    prompts = torch.cat([ids[:count] for ids, count in zip(given["input_ids"], starts, strict=True)])[None]
    hidden, state = text.begin(prompts, starts, features)
    for step in range(min(lengths) - 2):
        assert_close(
            golden,
            CAPTIONER,
            text.logits(hidden),
            torch.stack([expected[n, start + step - 1] for n, start in enumerate(starts)]),
        )
        hidden = text.step(torch.stack([given["input_ids"][n, start + step] for n, start in enumerate(starts)]), state)


@torch.inference_mode()
def test_greedy_ids_equal_those_of_transformers(golden: Any) -> None:
    module, _ = load(golden, CAPTIONER, "encoder_attention")
    about = golden.json(CAPTIONER)
    (expected,) = about["values"]["greedy_generate_first_image"]
    features = module["vision"](golden.tensors(CAPTIONER, "in.")["pixel_values"][:1])
    hidden, state = module["text"].begin(torch.tensor([expected[:1]]), [1], features)
    ids = expected[:1]
    while len(ids) < len(expected):
        ids.append(int(module["text"].logits(hidden)[0].argmax()))
        hidden = module["text"].step(torch.tensor(ids[-1:]), state)
    assert ids == expected


@torch.inference_mode()
def test_retrieval_model_equals_transformers_in_matching_and_similarity(golden: Any) -> None:
    module, heads = load(golden, RETRIEVAL, "decoder_attention", "head")
    given, expected = golden.tensors(RETRIEVAL, "in."), golden.tensors(RETRIEVAL, "out.")
    real = given["attention_mask"].bool()
    features = module["vision"](given["pixel_values"])
    assert_close(golden, RETRIEVAL, features, expected["vision_last_hidden_state"])
    grounded = module["text"](given["input_ids"], real, ENCODER, features)
    assert_close(golden, RETRIEVAL, grounded[real], expected["multimodal_text_last_hidden_state"][real])
    head = F.linear(grounded[:, 0], heads["matching.head.weight"], heads["matching.head.bias"])
    assert_close(golden, RETRIEVAL, head, expected["itm_logits"])
    alone = module["text"](given["input_ids"], real, ENCODER)[:, 0]
    image = F.linear(features[:, 0], heads["contrast.vision.weight"], heads["contrast.vision.bias"])
    text = F.linear(alone, heads["contrast.text.weight"], heads["contrast.text.bias"])
    assert_close(golden, RETRIEVAL, F.normalize(image, dim=1) @ F.normalize(text, dim=1).T, expected["itc_similarity"])


@pytest.mark.parametrize("name", [CAPTIONER, RETRIEVAL])
def test_authors_names_and_back_lose_nothing(golden: Any, name: str) -> None:
    ours = blip_to_network(golden.tensors(name, "w."))
    again = blip_to_network(network_to_blip(ours))
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[key], value) for key, value in ours.items())
