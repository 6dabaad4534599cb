"""BLIP's pre-training step equals the authors': losses, similarities, negatives, gradients, momentum and queue."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_mm.language.med import MED
from lit_mm.objectives.captioning import Captioning
from lit_mm.objectives.image_text import ImageTextModel
from lit_mm.objectives.pairs import Matching, MomentumContrast, in_batch_logits, matching_logits, matching_loss
from lit_mm.samples.batch import Batch, Views
from lit_mm.weights.blip import blip_to_network, network_to_blip
from lit_mm.weights.convert import load_strict

NAME = "blip_pretrain"


class Tokens(nn.Module):
    """The vision encoder of the golden file: one linear per token; the first token plays the class token."""

    returns_class_token = True

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.vit = nn.Linear(width, width)

    def token_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        return size

    def forward(self, tokens: Tensor) -> Tensor:
        return self.vit(tokens)


def build(golden: Any) -> ImageTextModel:
    about = golden.json(NAME)
    config, ids = about["config"], about["special_ids"]
    text = MED(
        config["encoder_width"],
        config["vocab_size"],
        config["hidden_size"],
        config["num_hidden_layers"],
        config["num_attention_heads"],
        config["intermediate_size"],
        config["max_position_embeddings"],
        eps=config["layer_norm_eps"],
    )
    model = ImageTextModel(
        Tokens(config["encoder_width"]),
        text,
        (ids["cls"], ids["enc"], ids["dec(bos)"]),
        width=config["embed_dim"],
        rate=config["momentum"],
        queue_size=config["queue_size"],
    )
    load_strict(model, blip_to_network(golden.tensors(NAME, "w.")))
    model.eval()
    model.training = True  # momentum and queue move; dropout is off, as in the file
    return model


def batch_of(golden: Any, model: ImageTextModel) -> Batch:
    given = golden.tensors(NAME, "in.")
    real = given["attention_mask"].bool()
    table = given["input_ids"].clone()
    table[:, 0] = model.decoder_id
    lengths, count = tuple(real.sum(1).tolist()), len(table)
    ids = table[real][None]
    ends = torch.tensor(lengths).cumsum(0) - 1
    supervised = torch.tensor([place for place in range(ids.shape[1]) if place not in ends.tolist()])
    nothing = torch.zeros(0, dtype=torch.long)
    return Batch(
        ids=ids,
        lengths=lengths,
        positions=ids,
        visual=nothing,
        bank=nothing,
        supervised=supervised,
        labels=ids[0, supervised + 1],
        sample_ids=tuple(map(str, range(count))),
        views=Views((given["image_tokens"],), torch.arange(count), torch.full((count,), -1), 0),
        units={"tokens": len(supervised), "pairs": count},
    )


@pytest.fixture
def model(golden: Any) -> ImageTextModel:
    return build(golden)


@pytest.fixture
def batch(golden: Any, model: ImageTextModel) -> Batch:
    return batch_of(golden, model)


def assert_close(golden: Any, ours: Tensor, theirs: Tensor) -> None:
    tolerance = golden.json(NAME)["tolerance"]
    torch.testing.assert_close(
        ours, theirs, rtol=tolerance["float32_rtol"], atol=tolerance["float32_atol"], check_dtype=False
    )


def losses(golden: Any, model: ImageTextModel, batch: Batch) -> dict[str, Tensor]:
    """Mean losses, with the negatives that the file has drawn."""
    about = golden.json(NAME)["values"]
    contrast = MomentumContrast(alpha=golden.json(NAME)["config"]["alpha_used"], ramp=0)
    itc = contrast(model, batch) / batch.units["pairs"]
    negatives = (about["neg_image_idx_for_each_text"], about["neg_text_idx_for_each_image"])
    itm = matching_loss(model, model.encode(batch), *map(torch.tensor, negatives)) / batch.units["pairs"]
    return {"loss_ita": itc, "loss_itm": itm, "loss_lm": Captioning(0.1)(model, batch) / batch.units["tokens"]}


def test_losses_and_gradients_are_the_authors(golden: Any, model: ImageTextModel, batch: Batch) -> None:
    ours, about = losses(golden, model, batch), golden.json(NAME)["values"]
    for name, value in ours.items():
        assert value.item() == pytest.approx(about[name], rel=1e-5), name
    sum(ours.values()).backward()
    gradients = {
        "temp": model.contrast.temperature.grad.sum(),
        "visual_encoder.weight_l2": model.vision.vit.weight.grad.norm(),
        "vision_proj.weight_l2": model.contrast.vision.weight.grad.norm(),
        "text_proj.weight_l2": model.contrast.text.weight.grad.norm(),
        "itm_head.weight_l2": model.matching.head.weight.grad.norm(),
        "word_embeddings_l2": model.text.words.weight.grad.norm(),
    }
    for name, value in gradients.items():
        assert value.item() == pytest.approx(about["grad"][name], rel=1e-4), name


@torch.no_grad()
def test_similarities_and_weights_of_negatives_are_the_authors(
    golden: Any, model: ImageTextModel, batch: Batch
) -> None:
    expected = golden.tensors(NAME, "out.")
    encoded, targets = model.encode(batch), model.targets(batch)
    temperature, valid = model.contrast.temperature, encoded.valid
    for name, anchors, candidates, queue in (
        ("sim_i2t", encoded.image, targets.text, model.queue.text),
        ("sim_t2i", encoded.text, targets.image, model.queue.image),
        ("sim_i2t_m", targets.image, targets.text, model.queue.text),
        ("sim_t2i_m", targets.text, targets.image, model.queue.image),
    ):
        assert_close(golden, in_batch_logits(anchors, candidates, queue, temperature, valid), expected[name])
    images, texts = Matching().weights(model, batch)
    assert_close(golden, images, expected["itm_weights_t2i"])
    assert_close(golden, texts, expected["itm_weights_i2t"])
    about = golden.json(NAME)["values"]
    negatives = (about["neg_image_idx_for_each_text"], about["neg_text_idx_for_each_image"])
    logits = matching_logits(model, encoded, *map(torch.tensor, negatives))
    assert_close(golden, logits, expected["itm_logits"])


@torch.no_grad()
def test_momentum_and_queue_after_the_step_are_the_authors(golden: Any, model: ImageTextModel, batch: Batch) -> None:
    before = model.queue.pointer.item()
    losses(golden, model, batch)
    expected, about = golden.tensors(NAME, "out."), golden.json(NAME)["values"]
    assert before == about["queue_ptr_before"]
    assert model.queue.pointer.item() == about["queue_ptr_after"]
    released = network_to_blip(model.state_dict())
    after = {name.removesuffix("_after"): value for name, value in expected.items() if name.endswith("_after")}
    assert after
    for name, value in after.items():
        assert_close(golden, released[name], value)


def test_authors_names_and_back_lose_nothing(golden: Any, model: ImageTextModel) -> None:
    published = golden.tensors(NAME, "w.")
    again = network_to_blip(model.state_dict())
    assert again.keys() == published.keys()
    assert all(torch.equal(again[name], value) for name, value in published.items())
