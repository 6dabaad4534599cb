"""The published recipes of BLIP-2 have the released schedules and the published counts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_mm.commands.recipe import RecipeCLI

PAPER = Path(__file__).parents[2] / "experiments/paper"
STEPS = 10_000  # steps of an epoch; points of the file lie within them
LANGUAGES = {"blip2_opt": "opt-2.7b", "blip2_t5": "flan-t5-xl"}
STAGES = {"represent": "blip2_stage1", "caption": "blip2_caption_finetune", "retrieval": "blip2_caption_finetune"}


@pytest.fixture(scope="module", params=sorted(LANGUAGES))
def recipe(request: pytest.FixtureRequest) -> tuple[str, RecipeCLI]:
    with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        patch.setattr(sys, "argv", ["lit_mm"])
        return request.param, RecipeCLI(["--config", str(PAPER / f"{request.param}.yaml")], "fit")


def test_rates_are_the_released_ones_at_every_point(golden: Any, recipe: tuple[str, RecipeCLI]) -> None:
    schedules = golden.json("blip_family_lr_schedules")["schedules"]
    for stage in recipe[1].stages:
        if (entry := schedules.get(STAGES.get(stage.name, ""))) is None:
            continue
        assert stage.epochs == entry["args"]["max_epoch"]
        for point in entry["points"]:
            step = point["epoch"] * STEPS + point["step_in_epoch"]
            for train in stage.train.values():
                rate = train.lr * stage.schedule.factor(step, stage.epochs * STEPS)
                assert rate == pytest.approx(point["lr"], rel=1e-9), (stage.name, point)


def test_parts_and_stages_have_the_published_counts(golden: Any, recipe: tuple[str, RecipeCLI]) -> None:
    name, cli = recipe
    published = golden.json("blip_params")
    modules = published["original_modules"]
    counts = {part: sum(p.numel() for p in tensors.values()) for part, tensors in cli.model.parts().items()}
    trained = {stage.name: sum(counts[part] for part in stage.train) for stage in cli.stages}
    second = modules["qformer_vitg"]["stage2_trainable"][LANGUAGES[name]]["trainable_incl_ln_vision"]
    assert trained["represent"] == modules["qformer_vitg"]["stage1_trainable_including_ln_vision"]
    assert trained["generate"] == second
    assert counts["vision"] == modules["eva_vit_g_depth39"]["total"]
    whole = published["hf_models"][f"blip2_{LANGUAGES[name]}"]
    assert counts["language"] == whole["modules"]["language_model"] + whole.get("untied_lm_head_extra", 0)
    assert sum(counts.values()) == sum(p.numel() for p in cli.model.network.parameters())


def test_retrieval_branches_off_and_large_views_come_with_fine_tuning(recipe: tuple[str, RecipeCLI]) -> None:
    stages = {stage.name: stage for stage in recipe[1].stages}
    assert stages["retrieval"].starts_from == "represent"
    tilings = {name: recipe[1].model.processor_of(stage).tiling for name, stage in stages.items()}
    assert {name: tiling.size for name, tiling in tilings.items()} == {
        "represent": 224,
        "generate": 224,
        "caption": 364,
        "retrieval": 364,
    }
