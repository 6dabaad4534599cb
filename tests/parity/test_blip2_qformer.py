"""The Q-Former in its four modes equals the original module, and loads its checkpoint."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_mm.connectors.qformer import QFormer, who_sees_whom
from lit_mm.samples.batch import IGNORE
from lit_mm.weights.convert import load_strict
from lit_mm.weights.qformer import lavis_to_qformer

NAME = "blip2_qformer"


def build(config: dict[str, Any], *, text: bool = True) -> QFormer:
    return QFormer(
        config["encoder_width"],
        queries=config["query_length"],
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        ffn_width=config["intermediate_size"],
        cross_every=config["cross_attention_freq"],
        vocab_size=config["vocab_size"] if text else None,
        max_positions=config["max_position_embeddings"],
        head=text,
        eps=config["layer_norm_eps"],
    ).eval()


def published(golden: Any) -> dict[str, Tensor]:
    return golden.tensors(NAME, "w.") | {"query_tokens": golden.tensors(NAME, "in.")["query_tokens"]}


@pytest.fixture
def qformer(golden: Any) -> QFormer:
    module = build(golden.json(NAME)["config"])
    load_strict(module, lavis_to_qformer(published(golden)))
    return module


@torch.inference_mode()
def outputs(module: QFormer, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Expected outputs, the tensors under `out.` of the golden file."""
    features, ids, real = given["image_embeds"], given["input_ids"], given["attention_mask"]
    queries = len(module.queries)
    alone = who_sees_whom("unimodal", queries, real)[:, queries:, queries:]
    causal = module(features, given["itg_input_ids"], who_sees_whom("multimodal_causal", queries, real))
    return {
        "queries_only": module(features),
        "text_only_unimodal": module(None, ids, alone),
        "queries_text_bidirectional": module(features, ids, who_sees_whom("bidirectional", queries, real)),
        "queries_text_causal": causal,
        "itg_logits": module.logits(causal[:, queries:]),
    }


def real_rows(name: str, value: Tensor, given: dict[str, Tensor]) -> Tensor:
    """Select positions that are not padding."""
    text = given["attention_mask"].bool()
    if name == "queries_only":
        return value
    queries = torch.ones(len(text), value.shape[1] - text.shape[1], dtype=torch.bool)
    return value[torch.cat([queries, text], dim=1)]


def test_every_mode_agrees_with_the_original(golden: Any, qformer: QFormer) -> None:
    given, expected = golden.tensors(NAME, "in."), golden.tensors(NAME, "out.")
    tolerance = golden.json(NAME)["tolerance"]
    got = outputs(qformer, given)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            real_rows(name, got[name], given),
            real_rows(name, value, given),
            rtol=tolerance["float32_rtol"],
            atol=tolerance["float32_atol"],
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_the_masks_are_the_published_ones(golden: Any, qformer: QFormer) -> None:
    real, masks = golden.tensors(NAME, "in.")["attention_mask"], golden.tensors(NAME, "mask.")
    assert masks
    for sight, expected in masks.items():
        assert torch.equal(who_sees_whom(sight, len(qformer.queries), real), expected.bool()), sight


def test_the_captioning_loss_is_the_original_one(golden: Any, qformer: QFormer) -> None:
    given, about = golden.tensors(NAME, "in."), golden.json(NAME)
    logits, labels = outputs(qformer, given)["itg_logits"][:, :-1], given["itg_labels"][:, 1:]
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, label_smoothing=0.1)
    tolerance = about["tolerance"]
    assert loss.item() == pytest.approx(
        about["values"]["itg_loss"], rel=tolerance["float32_rtol"], abs=tolerance["float32_atol"]
    )


def test_without_its_text_branch_it_is_the_perceive_sampler(golden: Any) -> None:
    """XComposer's release has no text branch; the output of the queries is the same."""
    text = ("words", "positions", "head", "text_ffn")
    state = {n: t for n, t in lavis_to_qformer(published(golden)).items() if not any(piece in n for piece in text)}
    module = build(golden.json(NAME)["config"], text=False)
    load_strict(module, state)
    given, tolerance = golden.tensors(NAME, "in."), golden.json(NAME)["tolerance"]
    with torch.inference_mode():
        got = module(given["image_embeds"])
    expected = golden.tensors(NAME, "out.")["queries_only"]
    torch.testing.assert_close(got, expected, rtol=tolerance["float32_rtol"], atol=tolerance["float32_atol"])


def test_every_published_weight_matters(golden: Any, qformer: QFormer) -> None:
    """Changing any tensor changes an output, so no tensor is mapped to an unused place."""
    given, weights = golden.tensors(NAME, "in."), published(golden)
    atol = golden.json(NAME)["tolerance"]["float32_atol"]
    right = outputs(qformer, given)
    for name, value in weights.items():
        if name.endswith("self.key.bias"):
            continue  # softmax does not feel what is added to all of a query's scores
        altered = weights | {name: value + 0.3 * max(value.abs().mean(), 0.1) * torch.randn_like(value).sign()}
        load_strict(qformer, lavis_to_qformer(altered))
        now = outputs(qformer, given)
        moved = max((now[key] - right[key]).abs().max().item() for key in right)
        assert moved > atol, f"{name} altered: the outputs moved by {moved:.1e}"
