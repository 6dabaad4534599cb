"""BLIP-2's first stage equals the authors': features, contrast, matching, captioning, and their gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_mm.connectors.qformer_paired import PairedQFormer
from lit_mm.objectives.query_pairs import (
    Pairs,
    contrast_loss,
    encode_pairs,
    matching_logits,
    matching_losses,
    negative_weights,
    similarities,
)
from lit_mm.samples.batch import Texts
from lit_mm.weights.blip2 import blip2_to_lavis, lavis_to_blip2
from lit_mm.weights.convert import load_strict
from lit_mm.weights.names import below

NAME = "blip2_stage1"


@pytest.fixture
def connector(golden: Any) -> PairedQFormer:
    about, config = golden.json(NAME), golden.json(NAME)["config"]
    module = PairedQFormer(
        config["encoder_width"],
        8,
        queries=config["num_query_tokens"],
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        ffn_width=config["intermediate_size"],
        cross_every=config["cross_attention_freq"],
        vocab_size=config["vocab_size"],
        max_positions=config["max_position_embeddings"],
        head=True,
        contrast_width=config["embed_dim"],
        decoder_id=about["special_ids"]["dec"],
        norm_eps=config["ln_vision_eps"],
    ).eval()
    state = below(lavis_to_blip2(golden.tensors(NAME, "w.")), "connector.")
    load_strict(module, state, allow_missing=("projection",))
    return module


def pairs_of(golden: Any, connector: PairedQFormer, rows: slice = slice(None)) -> Pairs:
    """Pairs of one rank, whose candidates are the rows of all ranks."""
    inputs = golden.tensors(NAME, "in.")
    texts = Texts(inputs["input_ids"], inputs["attention_mask"].bool())
    return encode_pairs(connector, inputs["image_embeds_raw"][rows], Texts(texts.ids[rows], texts.mask[rows]))


def close(golden: Any, ours: Tensor, theirs: Tensor) -> None:
    tolerance = golden.json(NAME)["tolerance"]
    torch.testing.assert_close(ours, theirs, rtol=tolerance["float32_rtol"], atol=tolerance["float32_atol"])


def caption_logits(connector: PairedQFormer, pairs: Pairs) -> Tensor:
    return connector.qformer.logits(connector.predict(pairs.features, pairs.texts))


def caption_loss(connector: PairedQFormer, pairs: Pairs) -> Tensor:
    learnt = pairs.texts.mask[:, 1:]
    logits = caption_logits(connector, pairs)[:, :-1][learnt]
    return F.cross_entropy(logits, pairs.texts.ids[:, 1:][learnt], label_smoothing=0.1)


def test_features_similarities_and_logits_of_one_process_are_the_original_ones(
    golden: Any, connector: PairedQFormer
) -> None:
    expected, values = golden.tensors(NAME, "world1."), golden.json(NAME)["losses"]["world1"]
    pairs = pairs_of(golden, connector)
    close(golden, pairs.image, expected["image_feats"])
    close(golden, pairs.text, expected["text_feat"])
    temperature = connector.heads()[0].temperature
    to_text, to_image = similarities(pairs, temperature)
    close(golden, to_text, expected["sim_i2t"])
    close(golden, to_image, expected["sim_t2i"])
    texts, images = negative_weights(pairs, temperature)
    close(golden, texts, expected["itm_neg_weights_i2t"])
    close(golden, images, expected["itm_neg_weights_t2i"])
    drawn = (torch.tensor(values[f"neg_{kind}"]) for kind in ("text_idx_for_each_image", "image_idx_for_each_text"))
    close(golden, matching_logits(connector, pairs, *drawn), expected["itm_logits"])
    real = pairs.texts.mask
    close(golden, caption_logits(connector, pairs)[real], expected["lm_logits"][real])


def test_losses_and_gradients_of_one_process_are_the_original_ones(golden: Any, connector: PairedQFormer) -> None:
    values = golden.json(NAME)["losses"]["world1"]
    pairs = pairs_of(golden, connector)
    drawn = (torch.tensor(values[f"neg_{kind}"]) for kind in ("text_idx_for_each_image", "image_idx_for_each_text"))
    losses = {
        "loss_itc": contrast_loss(pairs, connector.heads()[0].temperature, 0.1).mean(),
        "loss_itm": matching_losses(matching_logits(connector, pairs, *drawn)).mean(),
        "loss_lm": caption_loss(connector, pairs),
    }
    for name, value in losses.items():
        assert value.item() == pytest.approx(values[name], rel=1e-4), name
    sum(losses.values()).backward()
    modules = {
        "temp": connector.heads()[0].temperature,
        "query_tokens_l2": connector.qformer.queries,
        "vision_proj.weight_l2": connector.heads()[0].vision.weight,
        "text_proj.weight_l2": connector.heads()[0].text.weight,
        "itm_head.weight_l2": connector.heads()[1].head.weight,
        "ln_vision.weight_l2": connector.norm.weight,
        "word_embeddings_l2": connector.qformer.words.weight,
    }
    assert modules.keys() == values["grad"].keys()
    for name, parameter in modules.items():
        gradient = parameter.grad.norm() if name.endswith("_l2") else parameter.grad[0]
        assert gradient.item() == pytest.approx(values["grad"][name], rel=1e-3), name


def test_pairs_of_one_image_share_the_target_and_are_no_negatives_of_each_other(
    golden: Any, connector: PairedQFormer
) -> None:
    expected, images = golden.tensors(NAME, "retrieval."), golden.tensors(NAME, "in.")["image_id_retrieval"]
    (values,) = (entry for name, entry in golden.json(NAME)["losses"].items() if name.startswith("retrieval"))
    pairs, temperature = pairs_of(golden, connector), connector.heads()[0].temperature
    texts, pictures = negative_weights(pairs, temperature, images)
    close(golden, texts, expected["itm_neg_weights_i2t"])
    close(golden, pictures, expected["itm_neg_weights_t2i"])
    loss = contrast_loss(pairs, temperature, 0.1, images).mean()
    assert loss.item() == pytest.approx(values["loss_itc"], rel=1e-4)


@pytest.mark.parametrize("rank", [0, 1])
def test_each_of_two_ranks_contrasts_with_the_pairs_of_both(golden: Any, connector: PairedQFormer, rank: int) -> None:
    expected, values = golden.tensors(NAME, f"world2_rank{rank}."), golden.json(NAME)["losses"][f"world2_rank{rank}"]
    count = len(expected["sim_i2t"])
    both = pairs_of(golden, connector)
    alone = pairs_of(golden, connector, slice(rank * count, (rank + 1) * count))
    pairs = replace(
        alone,
        all_image=both.all_image,
        all_text=both.all_text,
        all_valid=both.all_valid,
        counts=[count, count],
        first=rank * count,
    )
    to_text, to_image = similarities(pairs, connector.heads()[0].temperature)
    close(golden, to_text, expected["sim_i2t"])
    close(golden, to_image, expected["sim_t2i"])
    loss = contrast_loss(pairs, connector.heads()[0].temperature, 0.1).mean()
    assert loss.item() == pytest.approx(values["loss_itc"], rel=1e-4)
    assert caption_loss(connector, pairs).item() == pytest.approx(values["loss_lm"], rel=1e-4)


def test_names_of_the_authors_and_back_lose_nothing(golden: Any) -> None:
    theirs = golden.tensors(NAME, "w.")
    again = blip2_to_lavis(lavis_to_blip2(theirs))
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[name], value) for name, value in theirs.items())
