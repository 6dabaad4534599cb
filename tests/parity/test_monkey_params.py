"""The published recipe of Monkey has the published numbers of parameters, trainable ones and visual tokens."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_mm.commands.recipe import RecipeCLI
from lit_mm.module import MultimodalModule
from tests.tokens import rows_of

RECIPE = Path(__file__).parents[2] / "experiments" / "paper" / "monkey.yaml"


def build(monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[MultimodalModule, list[Any]]:
    """Build the model of a recipe on the meta device. Returns it with its stages."""
    monkeypatch.setattr(sys, "argv", ["lit_mm"])
    with torch.device("meta"):
        cli = RecipeCLI(["--config", str(RECIPE), "--model.init_args.tokenizer", "nano", *words], "fit")
    return cli.model, cli.stages


def counts(module: MultimodalModule) -> dict[str, int]:
    return {part: sum(p.numel() for p in parameters.values()) for part, parameters in module.parts().items()}


def test_every_part_has_the_published_count(golden: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    published = golden.json("xcomposer_qwen_monkey_params")["counts"]
    visual, whole = published["monkey_vision"], published["monkey"]
    model, stages = build(monkeypatch)
    count = counts(model)
    assert count == {
        "vision": visual["encoder_blocks_and_embeddings"],
        "window_adapters": visual["lora_total"],
        "connector": visual["resampler_trainable"],
        "position_table": visual["resampler_pos_embed_fixed"],
        "projection": visual["ln_post_and_proj"],
        "language": published["qwen_7b"]["total"],
    }
    assert sum(count.values()) == whole["total"]
    assert sum(count.values()) - count["language"] == visual["total"]
    assert (whole["llm"], whole["vision_encoder"], whole["lora"]) == (
        count["language"],
        count["vision"],
        count["window_adapters"],
    )
    assert count["connector"] + count["position_table"] == whole["resampler"]
    (stage,) = stages  # the script trains the fixed table by accident, the recipe does not
    assert sum(count[part] for part in stage.train) + count["position_table"] == whole["trainable_released_script"]


def test_attention_and_feed_forward_have_the_published_share_of_the_adapters(
    golden: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = golden.json("xcomposer_qwen_monkey_params")["counts"]["monkey_vision"]
    model, _ = build(monkeypatch)
    adapters = model.parts()["window_adapters"]
    mlp = sum(p.numel() for name, p in adapters.items() if ".mlp." in name)
    assert mlp == published["lora_mlp"]
    assert sum(p.numel() for p in adapters.values()) - mlp == published["lora_attention"]
    windows = len(next(iter(adapters.values())))
    assert sum(p.numel() for p in adapters.values()) == windows * published["lora_per_adapter_set"]


def test_larger_images_have_the_published_tokens_and_a_set_for_each_window(
    golden: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, per_set = golden.json("monkey_tiles"), 0
    rows = {(row["height"], row["width"]): row for row in rows_of(table)}
    for size in ((896, 896), (896, 1344)):
        model, _ = build(monkeypatch, "--model.init_args.size", str(list(size)))
        row = rows[size]
        assert model.processor.visual_tokens(300, 500) - row["visual_tokens"] == 0
        windows = row["rows"] * row["cols"]
        per_set = per_set or counts(model)["window_adapters"] // windows
        assert counts(model)["window_adapters"] == windows * per_set
