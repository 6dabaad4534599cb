"""LLaVA-1.5 and LLaVA-NeXT give the logits of transformers' models with random weights, through our key maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)

from lit_mm.connectors.linear import linear_projector
from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.families import Llava, Llava15, LlavaNext, Vila
from lit_mm.language.llama import Llama
from lit_mm.module import MultimodalModule
from lit_mm.samples.collate import collate
from lit_mm.samples.inputs import Inputs
from lit_mm.samples.layout import BaseThenUnpaddedRows, InOrder
from lit_mm.stages.stage import Stage, Train
from lit_mm.tiling import AnyRes, CentreCrop
from lit_mm.tiling.anyres import GRIDS
from lit_mm.vision.vit import ViT
from lit_mm.weights.convert import load_strict
from lit_mm.weights.llava import hf_llava_to_model, llava_to_model
from lit_mm.weights.llava_next import hf_llava_next_to_model, llava_next_to_model
from lit_mm.weights.vila import vila_to_model
from tests.rows import states
from tests.tiny import Noise

ATOL = 1e-5  # fp32 on a CPU: measured 0 on logits of size 5
IMAGE_ID = 511  # the nano tokenizer has 509 tokens
TILE = 28
VISION = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
OLD = (("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head."), ("model.", ""))
AUTHORS = (
    ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
    ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
    ("model.language_model.", "model."),
)


def configs() -> dict[str, Any]:
    return {
        "vision_config": CLIPVisionConfig(image_size=TILE, patch_size=14, initializer_factor=5.0, **VISION),
        "text_config": LlamaConfig(intermediate_size=48, vocab_size=512, initializer_range=0.2, **TEXT),
        "image_token_index": IMAGE_ID,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }


def hf_llava() -> LlavaForConditionalGeneration:
    return LlavaForConditionalGeneration(LlavaConfig(**configs())).eval()


def hf_llava_next() -> LlavaNextForConditionalGeneration:
    grids = [[columns * TILE, rows * TILE] for rows, columns in GRIDS]  # the released list, (width, height) there
    return LlavaNextForConditionalGeneration(LlavaNextConfig(image_grid_pinpoints=grids, **configs())).eval()


def parts() -> tuple[ViT, Llama]:
    vision = ViT(TILE, 14, 16, layers=3, heads=2, select_layer=-2)
    return vision, Llama(width=32, layers=2, heads=4, kv_heads=2, ffn_width=48, vocab_size=512, norm_eps=1e-6)


def llava_15() -> Llava15:
    return Llava15(*parts(), "nano", image_size=TILE).eval()


def llava_next(rule: str = "hf") -> LlavaNext:
    inputs = Inputs(AnyRes(TILE, rule=rule), BaseThenUnpaddedRows(rule))
    return LlavaNext(*parts(), "nano", image_size=TILE, inputs=inputs).eval()


def renamed(state: dict[str, Tensor], names: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    """Replace the first prefix that matches in each name."""

    def other(name: str) -> str:
        found = next(((old, new) for old, new in names if name.startswith(old)), ("", ""))
        return found[1] + name.removeprefix(found[0])

    return {other(name): tensor for name, tensor in state.items()}


def asked(*pictures: Noise) -> Document:
    return Document("asked", (Turn("user", (*pictures, "what colour is it?")), Turn("assistant", ("red",))))


@torch.inference_mode()
def both(ours: MultimodalModule, theirs: nn.Module, document: Document, **inputs: Tensor) -> tuple[Tensor, Tensor]:
    """[L, vocabulary] logits of our model and of the reference, which gets our views and ids."""
    batch = collate([ours.processor.sample(document)], ours.processor)
    ids = batch.ids.index_fill(1, batch.visual, IMAGE_ID)
    (views,) = batch.views.groups
    pixels = views[None] if "image_sizes" in inputs else views
    expected = theirs(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids), **inputs).logits
    return ours.network.language.logits(states(ours.network, batch)), expected[0]


@pytest.mark.parametrize("pictures", [1, 2])
def test_a_converted_llava_1_5_has_the_same_logits(pictures: int) -> None:
    ours, theirs = llava_15(), hf_llava()
    load_strict(ours, hf_llava_to_model(theirs.state_dict()))
    got, expected = both(ours, theirs, asked(*(Noise(seed, 20, 33) for seed in range(pictures))))
    assert expected.abs().max() > 1
    torch.testing.assert_close(got, expected, rtol=0, atol=ATOL)


# (height, width): ties between grids, one row, one column, three rows of tiles, nothing to pad
@pytest.mark.parametrize("size", [(28, 28), (20, 61), (90, 31), (56, 56), (200, 40), (176, 198)])
def test_a_converted_llava_next_has_the_same_logits(size: tuple[int, int]) -> None:
    ours, theirs = llava_next(), hf_llava_next()
    load_strict(ours, hf_llava_next_to_model(theirs.state_dict()))
    got, expected = both(ours, theirs, asked(Noise(0, *size)), image_sizes=torch.tensor([size]))
    torch.testing.assert_close(got, expected, rtol=0, atol=ATOL)


def test_the_order_of_tiles_and_newlines_matters_to_the_logits() -> None:
    """This shows that the test above can fail."""
    ours, theirs = llava_next(), hf_llava_next()
    load_strict(ours, hf_llava_next_to_model(theirs.state_dict()))
    sample = ours.processor.sample(asked(Noise(0, 56, 56)))
    visual = (sample.index >= 0).nonzero()[0]
    sample.index[visual[[0, -1]]] = sample.index[visual[[-1, 0]]]
    batch = collate([sample], ours.processor)
    straight = collate([ours.processor.sample(asked(Noise(0, 56, 56)))], ours.processor)
    with torch.inference_mode():
        assert (states(ours.network, batch) - states(ours.network, straight)).abs().max() > 100 * ATOL


def test_the_authors_rule_and_the_converted_one_differ_where_grids_tie() -> None:
    official, converted = (llava_next(rule).processor.sample(asked(Noise(0, 28, 28))) for rule in ("official", "hf"))
    assert official.plans[0].grid == converted.plans[0].grid[::-1] == (2, 1)


@pytest.mark.parametrize(
    ("family", "theirs", "ours", "convert"),
    [
        (llava_15, hf_llava, hf_llava_to_model, llava_to_model),
        (llava_next, hf_llava_next, hf_llava_next_to_model, llava_next_to_model),
    ],
)
def test_the_authors_names_and_those_of_older_files_give_the_same_weights(
    family: Callable, theirs: Callable, ours: Callable, convert: Callable
) -> None:
    state = theirs().state_dict()
    expected = ours(state)
    older = ours(renamed(state, OLD) | {"language_model.model.rotary_emb.inv_freq": torch.zeros(4)})
    authors = convert(renamed(state, AUTHORS))
    vila = vila_to_model(renamed(state, AUTHORS)) if convert is llava_to_model else expected
    for other in (older, authors, vila):
        assert other.keys() == expected.keys()
        assert all(torch.equal(other[name], expected[name]) for name in expected)
    model = family()
    load_strict(model, authors)
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items() if "blocks.2" not in name)


def test_a_linear_projector_of_the_authors_fits_llava_and_the_vila_of_the_paper() -> None:
    projector = {"model.mm_projector.weight": torch.randn(32, 16), "model.mm_projector.bias": torch.randn(32)}
    for family in (Llava, Vila):
        model = family(*parts(), "nano", image_size=TILE, connector=linear_projector)
        rest = {name: tensor for name, tensor in model.state_dict().items() if ".connector." not in name}
        load_strict(model, rest | llava_to_model(projector))
        assert torch.equal(model.network.connector.mlp[0].weight, projector["model.mm_projector.weight"])


def test_an_entry_no_map_knows_is_named() -> None:
    theirs, stray = hf_llava_next().state_dict(), {"model.image_separator": torch.zeros(1)}
    with pytest.raises(UserError, match=r"model\.image_separator"):
        load_strict(llava_next(), hf_llava_next_to_model(theirs | stray))
    with pytest.raises(UserError, match=r"model\.image_newline"):  # LLaVA-1.5 has none
        load_strict(llava_15(), llava_to_model(renamed(theirs, AUTHORS)))


def test_the_first_stage_of_next_sees_one_view_and_no_newline() -> None:
    model = LlavaNext(*parts(), "nano", image_size=TILE)
    crop = Inputs(CentreCrop(TILE), InOrder())
    first = model.processor_of(Stage("pretrain", {"connector": Train(1e-3)}, inputs=crop))
    assert first.visual_tokens(60, 40) == 4
    assert model.processor.visual_tokens(60, 40) > 4
    assert (first.sample(asked(Noise(0, 60, 40))).index != -1).all()
