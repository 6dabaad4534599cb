"""The published recipes of InstructBLIP have the published counts, data sets and rates."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_mm.commands.recipe import RecipeCLI
from lit_mm.prompts.instructblip import InstructBlipPrompt

PAPER = Path(__file__).parents[2] / "experiments/paper"
RECIPES = {"instructblip_vicuna": ("vicuna-7b", 128), "instructblip_t5": ("flan-t5-xl", 192)}  # language, batch
RATES = {0: 1e-8, 500: 5.005e-6, 1000: 1e-5, 4999: 1e-5, 30_000: 5e-6}  # step -> rate: rise, peak, half-way


@pytest.fixture(scope="module", params=sorted(RECIPES))
def recipe(request: pytest.FixtureRequest) -> tuple[str, RecipeCLI]:
    with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        patch.setattr(sys, "argv", ["lit_mm"])
        return request.param, RecipeCLI(["--config", str(PAPER / f"{request.param}.yaml")], "fit")


def test_parts_and_stages_have_the_published_counts(golden: Any, recipe: tuple[str, RecipeCLI]) -> None:
    name, cli = recipe
    language, _ = RECIPES[name]
    published = golden.json("blip_params")
    modules, whole = published["original_modules"], published["hf_models"][f"instructblip_{language}"]
    counts = {part: sum(p.numel() for p in tensors.values()) for part, tensors in cli.model.parts().items()}
    trained = {stage.name: sum(counts[part] for part in stage.train) for stage in cli.stages}
    assert trained == {
        "generate": modules["qformer_vitg"]["stage2_trainable"][language]["trainable_incl_ln_vision"],
        "instruct": modules["qformer_vitg"]["instructblip_trainable"][language]["trainable_incl_ln_vision"],
    }
    assert counts["vision"] == modules["eva_vit_g_depth39"]["total"]
    assert counts["language"] == whole["modules"]["language_model"] + whole.get("untied_lm_head_extra", 0)
    assert sum(counts.values()) == sum(p.numel() for p in cli.model.network.parameters())


def test_instruction_tuning_is_the_published_one(recipe: tuple[str, RecipeCLI]) -> None:
    name, cli = recipe
    stage = next(stage for stage in cli.stages if stage.name == "instruct")
    data = cli.data_of(stage)
    assert (stage.max_steps, data.global_batch) == (60_000, RECIPES[name][1])
    assert (data.weights, len(data.corpora)) == ("sqrt", 13)
    for train in stage.train.values():
        rates = {step: train.lr * stage.schedule.factor(step, stage.max_steps) for step in RATES}
        assert rates == pytest.approx(RATES, rel=1e-9)
    processors = {of.name: cli.model.processor_of(of) for of in cli.stages}
    assert {of: processor.reading.text for of, processor in processors.items()} == {
        "generate": "none",
        "instruct": "instruction",
    }
    instruct = processors["instruct"]
    assert instruct.prompt == InstructBlipPrompt(writes_target=name == "instructblip_t5")
    assert (instruct.reading.max_length, instruct.reading.cut) == (128, "left")
    assert (instruct.augmentation.scale, instruct.augmentation.flip) == ((0.5, 1.0), 0.5)
    assert instruct.tiling.size == 224
