"""The published recipes of Qwen-VL and XComposer2-4KHD have the published numbers of parameters and visual tokens."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_mm.commands.recipe import RecipeCLI
from lit_mm.module import MultimodalModule
from tests.tokens import rows_of

PAPER = Path(__file__).parents[2] / "experiments" / "paper"
POST_NORM = 2 * 1024  # of CLIP, behind the features: the release replaces it by an identity, ours leaves it out


def build(recipe: str, monkeypatch: pytest.MonkeyPatch) -> tuple[MultimodalModule, list[Any]]:
    """Build the model of a recipe on the meta device. Returns it with its stages."""
    monkeypatch.setattr(sys, "argv", ["lit_mm"])
    with torch.device("meta"):
        cli = RecipeCLI(["--config", str(PAPER / f"{recipe}.yaml"), "--model.init_args.tokenizer", "nano"], "fit")
    return cli.model, cli.stages


def counts(module: MultimodalModule) -> dict[str, int]:
    return {part: sum(p.numel() for p in parameters.values()) for part, parameters in module.parts().items()}


def test_qwen_vl_has_the_published_count_in_every_part(golden: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    published = golden.json("xcomposer_qwen_monkey_params")["counts"]
    model, stages = build("qwen_vl", monkeypatch)
    count, visual = counts(model), published["qwen_vl_vision"]
    assert count == {
        "vision": visual["encoder_blocks_and_embeddings"],
        "connector": published["monkey_vision"]["resampler_trainable"],
        "position_table": published["monkey_vision"]["resampler_pos_embed_fixed"],
        "projection": visual["ln_post_and_proj"],
        "language": published["qwen_7b"]["total"],
    }
    assert count["connector"] + count["position_table"] == visual["resampler_attn_pool"]
    total, language = published["qwen_vl"], published["qwen_7b"]
    assert sum(count.values()) == total["total"]
    assert count["vision"] == total["vision_encoder"]
    assert sum(count.values()) - count["vision"] - count["language"] == total["resampler_incl_ln_proj"]
    text = {name: p.numel() for name, p in model.parts()["language"].items()}
    assert text["lm.model.embed_tokens.weight"] == language["wte"]
    assert text["lm.lm_head.weight"] == language["lm_head"]
    assert text["lm.model.norm.weight"] == language["ln_f"]
    assert sum(n for name, n in text.items() if ".layers.0." in name) == language["per_layer"]
    assert [sorted(stage.train) for stage in stages] == [
        ["connector", "projection", "vision"],
        ["connector", "language", "projection", "vision"],
        ["connector", "language"],
    ]


def test_qwen_vl_makes_256_visual_tokens_at_both_resolutions(golden: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, stages = build("qwen_vl", monkeypatch)
    slots = golden.json("qwen_vl_prompts")["image_encoding"]
    for stage, side in zip(stages, (224, 448, 448), strict=True):
        processor = model.processor_of(stage)
        (view,) = processor.tiling(300, 800).views
        assert view.size == (side, side)
        assert f"up to {processor.visual_tokens(300, 800)} in total" in slots


def test_xcomposer2_4khd_has_the_published_count_in_every_part(golden: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    published = golden.json("xcomposer_qwen_monkey_params")["counts"]["xcomposer2_4khd_7b"]
    model, stages = build("xcomposer2_4khd", monkeypatch)
    count = counts(model)
    assert count == {
        "vision": published["clip_vit_l"] - POST_NORM,
        "connector": published["vision_proj"] + published["newline_and_separator"],
        "partial_lora": published["plora"],
        "language": published["llm"],
    }
    assert sum(count.values()) == published["total"] - POST_NORM
    assert ["language" in stage.train for stage in stages] == [False, True]


def test_xcomposer2_4khd_makes_the_published_numbers_of_visual_tokens(
    golden: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = golden.json("xcomposer2_4khd_tiling")
    model, (pretrain, finetune) = build("xcomposer2_4khd", monkeypatch)
    processors = {25: model.processor_of(pretrain), 55: model.processor}
    for row in rows_of(table):
        if row["hd_num"] in processors and row["error"] is None:
            count = processors[row["hd_num"]].visual_tokens(row["height"], row["width"])
            assert count == row["visual_tokens"], row
    for limit, processor in processors.items():  # most in one column: a newline for every row
        assert processor.visual_tokens(336 * limit, 336) == table["max_tokens_per_setting"][str(limit)]
    by_source = model.processor_of(finetune).by_source
    assert by_source["docvqa"](1600, 3840) == model.processor.tiling(1600, 3840)
