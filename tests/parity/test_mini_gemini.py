"""Patch info mining, the regions of the HD variant, and the sizes of Mini-Gemini equal those of the authors' code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_mm.commands.recipe import RecipeCLI
from lit_mm.connectors.patch_info_mining import PatchInfoMining
from lit_mm.layers.two_maps import TwoMaps
from lit_mm.tiling.grids import RegionGrid
from lit_mm.vision.dual import high_regions, low_views
from lit_mm.vision.timm_encoder import TimmEncoder
from lit_mm.weights.convert import load_strict
from lit_mm.weights.mini_gemini import mini_gemini_to_model

PAPER = Path(__file__).parents[2] / "experiments" / "paper"
FILE = "mini_gemini_mining"
ATOL = 4e-6  # fp32 on a CPU, of the golden file
RTOL = 2e-6  # gradients reach 10 and are summed in another order: measured 8e-7


PAPER_RECIPES = [
    ("mini_gemini", "mini_gemini_7b_vicuna", 576, 2),
    ("mini_gemini_hd", "mini_gemini_7b_vicuna", 2880, 1),
    ("mini_gemini_gemma", "mini_gemini_2b_gemma", 576, 2),
]


@pytest.fixture
def mining(golden: Any) -> PatchInfoMining:
    config = golden.json(FILE)["config"]
    connector = PatchInfoMining(config["mm_hidden_size"], config["mm_hidden_size_aux"], config["llm_hidden_size"])
    state = mini_gemini_to_model(golden.tensors(FILE, "weight."))
    load_strict(connector, {name.removeprefix("network.connector."): tensor for name, tensor in state.items()})
    return connector


def maps_of(case: dict[str, Any], low: Tensor, high: Tensor) -> TwoMaps:
    """Reorder the features of the reference: tiles of all images, then the overviews of all images."""
    images, tiles, overview = len(high), case["image_grid"], case["image_global"]
    regions = low[: images * tiles**2].unflatten(0, (images, tiles**2))
    if overview:
        regions = torch.cat([low[images * tiles**2 :, None], regions], dim=1)
    return TwoMaps(regions, high_regions(high.permute(0, 2, 3, 1), tiles, overview))


@pytest.mark.golden_cases(FILE)
def test_tokens_and_mined_features_are_those_of_the_reference(
    golden: Any, mining: PatchInfoMining, case: dict[str, Any]
) -> None:
    tensors = golden.tensors(FILE, f"{case['name']}.")
    low, high = (tensors[name].requires_grad_() for name in ("low_res", "high_res"))
    maps = maps_of(case, low, high)
    tokens = mining(maps)
    torch.testing.assert_close(tokens, tensors["tokens"], rtol=0, atol=ATOL)
    if "mined" in tensors:
        torch.testing.assert_close(mining.mine(maps).flatten(1, 2), tensors["mined"], rtol=0, atol=ATOL)
    if "loss_weight" in tensors:
        (tokens * tensors["loss_weight"]).sum().backward()
        torch.testing.assert_close(low.grad, tensors["grad_low_res"], rtol=RTOL, atol=ATOL)
        torch.testing.assert_close(high.grad, tensors["grad_high_res"], rtol=RTOL, atol=ATOL)


def test_tiles_are_cut_row_by_row(golden: Any) -> None:
    example = golden.json(FILE)["tiling_example"]
    pixels = torch.tensor(example["input_3x4x4"])
    expected = torch.tensor(example["tiles"])
    tiles = low_views(pixels[None], expected.shape[-1], example["grid"], overview=False)
    assert torch.equal(tiles[0], expected)
    overview = low_views(pixels[None], expected.shape[-1], example["grid"], overview=True)[0, 0]
    torch.testing.assert_close(overview, torch.stack([tile.mean(dim=(1, 2)) for tile in expected]).T.reshape(3, 2, 2))


def test_token_counts_are_those_of_the_paper(golden: Any) -> None:
    for row in golden.json(FILE)["token_counts"]:
        side = row["low_res_tile"] // 14
        regions = row["image_grid"] ** 2 + row["image_global"]
        rows, columns = RegionGrid(row["high_res"], side, regions)((row["high_res"], row["high_res"]))
        assert rows * columns == row["visual_tokens"], row


def test_the_pyramid_joins_the_stages_as_the_reference_does(golden: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = golden.tensors(FILE, "pyramid.")
    stages = [tensors[f"stage_{number}"] for number in range(len(tensors) - 1)]
    side = 4 * stages[0].shape[2]
    overrides = {"depths": [1] * len(stages), "dims": [stage.shape[1] for stage in stages]}
    encoder = TimmEncoder("convnext_atto", image_size=side, pyramid=True, overrides=overrides)
    monkeypatch.setattr(encoder.model, "forward_intermediates", lambda pixels, **options: list(stages))
    joined = encoder(torch.zeros(1, 3, side, side))
    torch.testing.assert_close(joined, tensors["concat"].flatten(2).transpose(1, 2), rtol=0, atol=ATOL)


@pytest.mark.parametrize(("recipe", "size", "tokens", "stages"), PAPER_RECIPES)
def test_the_published_recipes_have_the_published_sizes(
    golden: Any, monkeypatch: pytest.MonkeyPatch, recipe: str, size: str, tokens: int, stages: int
) -> None:
    published = golden.json("cog_fuyu_mgm_params")["counts"][size]
    monkeypatch.setattr(sys, "argv", ["lit_mm"])
    with torch.device("meta"):
        arguments = ["--config", str(PAPER / f"{recipe}.yaml"), "--model.init_args.tokenizer", "nano"]
        cli = RecipeCLI(arguments, "fit")
    parts = {part: sum(p.numel() for p in tensors.values()) for part, tensors in cli.model.parts().items()}
    unused = (
        sum(p.numel() for p in cli.model.network.vision.low.blocks[0].parameters()) + 2 * 1024
    )  # last block and norm
    assert parts["vision"] == published["clip_vit_l_336"] - unused
    assert parts["second_vision"] == published["convnext_l_stem_stages"]
    assert parts["connector"] == published["stage1_trainable"]
    assert parts["connector"] == published["patch_info_mining"] + published["mm_projector_mlp2x_gelu"]
    assert sum(parts.values()) == published["total"] - unused
    assert cli.model.processor.visual_tokens(480, 640) == tokens
    assert len(cli.stages) == stages
