"""MiniGPT-4's templates give the released ids and labels; its recipes have the released rates and published counts."""

from __future__ import annotations

import re
import sys
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_mm.commands.recipe import RecipeCLI
from lit_mm.prompts.minigpt4 import TEMPLATES, MiniGPT4Prompt
from lit_mm.prompts.prompt import Stops
from tests.parity.test_blip2_layouts import captioned, flatten, queries_of, rows

FILE = "blip_family_llm_layouts"
PICTURE = "<Img><ImageHere></Img> "
PAPER = Path(__file__).parents[2] / "experiments/paper"
RECIPES = {  # recipe -> entry of the counts, width that the projection reads, template, visual tokens
    "minigpt4": ("vicuna_7b", 768, "vicuna", 32),
    "minigpt4_llama2": ("llama2_7b", 5632, "llama_2", 64),
}


class StubTokenizer:
    """Splits a text into words and marks of a golden vocabulary."""

    def __init__(self, vocabulary: dict[str, int], special: dict[str, int]) -> None:
        self.ids = {**vocabulary, **special, "\n": special["newline"]}
        self.bos_id, self.eos_id = special["bos"], special.get("eos", 2)
        pieces = sorted(self.ids, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, pieces)))

    def encode(self, text: str) -> list[int]:
        assert not self.pattern.sub("", text).strip(), text
        return [self.ids[piece] for piece in self.pattern.findall(text)]


def prompts_of(case: dict[str, Any]) -> list[MiniGPT4Prompt]:
    """The prompts that can draw each instruction of a case; the plain one for a case without instructions."""
    if not case["prompt_list"]:
        return [MiniGPT4Prompt("plain", end=case["end_sym"])]
    prompts = []
    for rendered in case["prompt_list"]:
        before, after = rendered.split(PICTURE)
        template = next(
            text
            for text, _ in TEMPLATES.values()
            if text.startswith(f"{before}{{}}") and after.endswith(text.partition("{}")[2])
        )
        instruction = after.removesuffix(template.partition("{}")[2])
        prompts.append(MiniGPT4Prompt(template, end=case["end_sym"], instructions=(instruction,)))
    return prompts


def test_the_language_model_reads_and_learns_the_released_tokens(golden: Any) -> None:
    content = golden.json(FILE)
    cases = {name: case for name, case in content["cases"].items() if name.startswith("minigpt4")}
    assert len(cases) >= 2
    for name, case in cases.items():
        tokenizer = StubTokenizer(case["vocab"], content["stub_special_ids"]["minigpt4"])
        expected = zip(rows(case, "sequence", "attention_mask"), rows(case, "labels", "attention_mask"), strict=True)
        for text, released in zip(case["answer"], expected, strict=True):
            document = captioned(text)
            results = {
                number: flatten(prompt.runs(document, tokenizer), queries_of(case))
                for number, prompt in enumerate(prompts_of(case))
            }
            fitting = [number for number, result in results.items() if result == released]
            assert fitting, name
            prompt, ids = prompts_of(case)[fitting[0]], released[0]
            start, _ = flatten(prompt.runs(document.without_answer(), tokenizer), queries_of(case))
            assert start == ids[: len(start)]
            assert Stops.of(prompt, tokenizer).length(ids), name


@pytest.fixture(scope="module", params=sorted(RECIPES))
def recipe(request: pytest.FixtureRequest) -> tuple[str, RecipeCLI]:
    with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        patch.setattr(sys, "argv", ["lit_mm"])
        return request.param, RecipeCLI(["--config", str(PAPER / f"{request.param}.yaml")], "fit")


def test_rates_are_the_released_ones_at_every_point(golden: Any, recipe: tuple[str, RecipeCLI]) -> None:
    schedules = golden.json("blip_family_lr_schedules")["schedules"]
    for number, stage in zip(count(1), recipe[1].stages, strict=False):
        entry = schedules[f"minigpt4_stage{number}"]
        per_epoch = entry["args"]["iters_per_epoch"]
        assert stage.max_steps == entry["args"]["max_epoch"] * per_epoch
        for point in entry["points"]:
            step = point["epoch"] * per_epoch + point["step_in_epoch"]
            (train,) = stage.train.values()
            assert train.lr * stage.schedule.factor(step, stage.max_steps) == pytest.approx(point["lr"], rel=1e-9), (
                point
            )


def test_only_the_projection_is_trained_and_has_the_published_count(golden: Any, recipe: tuple[str, RecipeCLI]) -> None:
    name, cli = recipe
    entry, channels, template, _ = RECIPES[name]
    published = next(
        count for key, count in golden.json("blip_params")["minigpt4_trainable"].items() if key.startswith(entry)
    )
    counts = {part: sum(p.numel() for p in tensors.values()) for part, tensors in cli.model.parts().items()}
    assert counts["projection"] == published == 4096 * (channels + 1)
    assert all(stage.train.keys() == {"projection"} for stage in cli.stages)
    assert counts["vision"] == golden.json("blip_params")["original_modules"]["eva_vit_g_depth39"]["total"]
    if "connector" in counts:
        parts = golden.json("blip_params")["original_modules"]["qformer_vitg"]
        assert counts["connector"] == parts["stage2_qformer_and_queries(no text branch)"] + parts["parts"]["ln_vision"]
    templates = [cli.model.processor_of(stage).prompt.template for stage in cli.stages]
    assert templates == ["plain", template]
    assert cli.model.processor.prompt.template == f"{template}_chat"


def test_an_image_has_the_published_number_of_tokens(recipe: tuple[str, RecipeCLI]) -> None:
    assert recipe[1].model.processor.visual_tokens(480, 640) == RECIPES[recipe[0]][3]
