"""The published recipe of XComposer has the published numbers of parameters, part by part.

The golden `total` is the sum of all parts, with LoRA once; `total_with_lora` counts LoRA twice.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_mm.commands.recipe import RecipeCLI

RECIPE = Path(__file__).parents[2] / "experiments/paper/xcomposer.yaml"


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> RecipeCLI:
    """The recipe on the meta device, with another tokenizer, because its tokenizer is not installed."""
    monkeypatch.setattr(sys, "argv", ["lit_mm"])  # LightningCLI warns about arguments that are pytest's
    with torch.device("meta"):
        return RecipeCLI(["--config", str(RECIPE)], "fit")


def test_the_parts_have_the_published_counts(golden: Any, cli: RecipeCLI) -> None:
    counts = golden.json("xcomposer_qwen_monkey_params")["counts"]
    vision, language = counts["xcomposer1_vision"], counts["xcomposer1_internlm_7b"]
    parts = cli.model.parts()
    count = {part: sum(p.numel() for p in parameters.values()) for part, parameters in parts.items()}
    assert count == {
        "vision": vision["eva_vit_g"],
        "connector": vision["ln_vision"] + vision["perceive_sampler_incl_queries"] + vision["internlm_proj"],
        "flags": vision["image_flags"],
        "language": language["total"],
        "lora": language["lora"],
    }
    assert sum(count.values()) == counts["xcomposer1"]["total"]
    assert len(cli.model.network.vision.model.blocks) == vision["depth"]


def test_the_connectors_pieces_have_the_published_counts(golden: Any, cli: RecipeCLI) -> None:
    published = golden.json("xcomposer_qwen_monkey_params")["counts"]["xcomposer1_vision"]
    pieces: dict[str, int] = {}
    for name, parameter in cli.model.parts()["connector"].items():
        piece = name.split(".")[1]
        pieces[piece] = pieces.get(piece, 0) + parameter.numel()
    assert pieces == {
        "norm": published["ln_vision"],
        "qformer": published["perceive_sampler_incl_queries"],
        "projection": published["internlm_proj"],
    }
    assert cli.model.network.connector.projector.qformer.queries.numel() == published["query_tokens"]


def test_lora_and_biases_sit_on_the_published_linears(golden: Any, cli: RecipeCLI) -> None:
    published = golden.json("xcomposer_qwen_monkey_params")["counts"]["xcomposer1_internlm_7b"]
    parts = cli.model.parts()
    layer = "lm.model.layers.0."
    below = {name.removeprefix(layer) for part in ("lora", "language") for name in parts[part] if layer in name}
    assert {name.removesuffix(".lora_A.default.weight") for name in below if ".lora_A." in name} == set(
        published["lora_linears"]
    )
    biases = {name.replace(".base_layer.", ".") for name in below if name.endswith(".bias")}
    assert biases == set(published["biases_per_layer"])


def test_each_stage_trains_what_is_published(cli: RecipeCLI) -> None:
    assert [set(stage.train) for stage in cli.stages] == [{"connector", "language"}, {"connector", "lora"}]
