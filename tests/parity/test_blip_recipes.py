"""The published recipes of BLIP have the released schedule, counts and augmentation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_mm.commands.recipe import RecipeCLI

PAPER = Path(__file__).parents[2] / "experiments/paper"
STEPS = 10_000  # steps of an epoch; points of the file lie within them


@pytest.fixture(params=["blip", "blip_capfilt_l"])
def recipe(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> RecipeCLI:
    monkeypatch.setattr(sys, "argv", ["lit_mm"])
    with torch.device("meta"):
        return RecipeCLI(["--config", str(PAPER / f"{request.param}.yaml")], "fit")


def test_rates_of_pretraining_are_the_released_ones_at_every_point(golden: Any, recipe: RecipeCLI) -> None:
    stage = recipe.stages[0]
    entries = golden.json("blip_family_lr_schedules")["schedules"]
    released = {name: entry for name, entry in entries.items() if name.startswith("blip_")}
    assert released
    for entry in released.values():
        assert stage.epochs == entry["args"]["max_epoch"]
        for point in entry["points"]:
            step = point["epoch"] * STEPS + point["step_in_epoch"]
            for train in stage.train.values():
                rate = train.lr * stage.schedule.factor(step, stage.epochs * STEPS)
                assert rate == pytest.approx(point["lr"], rel=1e-9), point


def test_parts_have_the_published_counts_and_momentum_is_no_parameter(golden: Any, recipe: RecipeCLI) -> None:
    published = golden.json("blip_params")["blip_med_vitb16_224"]
    counts = {part: sum(p.numel() for p in tensors.values()) for part, tensors in recipe.model.parts().items()}
    text = counts["text"] + counts["encoder"] + counts["decoder"]
    assert counts["vision"] == published["vision"]
    assert counts["vision"] + text == published["total_all_except_SA_shared(default)"]
    assert counts["encoder"] == published["self_attention_12_layers"]
    retrieval = golden.json("blip_params")["hf_models"]["blip_base_384_BlipForImageTextRetrieval"]["modules"]
    assert counts["matching"] == retrieval["itm_head"]
    assert counts["contrast"] == retrieval["vision_proj"] + retrieval["text_proj"] + 1
    assert sum(counts.values()) == sum(p.numel() for p in recipe.model.network.parameters())


def test_only_the_pretraining_crops_a_fifth(recipe: RecipeCLI) -> None:
    scales = {stage.name: stage.inputs.augmentation.scale for stage in recipe.stages}
    assert scales == {"pretrain": (0.2, 1.0), "caption": (0.5, 1.0), "retrieval": (0.5, 1.0)}
    assert recipe.stages[2].starts_from == "pretrain"


def test_the_retrieval_model_counts_all_texts_of_an_image_as_right(recipe: RecipeCLI) -> None:
    numbers = {stage.name: recipe.model.processor_of(stage).image_ids for stage in recipe.stages}
    assert numbers == {"pretrain": False, "caption": False, "retrieval": True}
    assert recipe.stages[2].objectives.keys() == {"itc_finetune", "itm_finetune"}
