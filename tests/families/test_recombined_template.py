"""`Recombined` with the chat template of its tokenizer trains and answers, also from a recipe."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_mm.commands.recipe import RecipeCLI
from lit_mm.datamodules.mixture import Member, Mixture
from lit_mm.errors import UserError
from lit_mm.families import Recombined
from lit_mm.inference.decoding import Decoding
from lit_mm.inference.generate import answer, prompt_sample
from lit_mm.language.pretrained import Pretrained
from lit_mm.prompts.template import ChatTemplate
from lit_mm.samples.batch import IGNORE
from lit_mm.samples.inputs import Inputs
from lit_mm.stages.stage import Stage, Train
from lit_mm.tiling import Stretch
from lit_mm.vision.vit import ViT
from tests.language.test_pretrained import config_of
from tests.prompts.templates import QWEN_2, QWEN_3, backend_json
from tests.tiny import MODEL, document, run_recipe


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """The folder of a tokenizer with Qwen2's chat template."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(backend_json())
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "chat_template": QWEN_2}))
    return folder


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """LightningCLI warns about arguments that are pytest's."""
    monkeypatch.setattr(sys, "argv", ["lit_mm"])


def documents_of(**options: object) -> Mixture:
    return Mixture([Member([document(n) for n in range(8)], "a")], row_tokens=192, global_batch=2, num_workers=0)


def test_a_model_trains_and_answers_with_the_template_of_its_tokenizer(tokenizer: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vision = ViT(image_size=28, patch=14, width=16, layers=1, heads=2)
    language = Pretrained(config_of("qwen3") | {"vocab_size": 512, "max_position_embeddings": 512})
    module = Recombined(vision, language, str(tokenizer), Inputs(Stretch(28), prompt=ChatTemplate()))
    stages = [Stage("all", {part: Train(lr=1e-2) for part in module.parts()}, max_steps=2)]
    run_recipe(module, stages, tmp_path / "run", data_class=documents_of)
    documents = [document(number, pictures=1) for number in range(2)]
    together = answer(module, documents, decoding=Decoding(3))
    assert together == [answer(module, [single], decoding=Decoding(3))[0] for single in documents]
    processor = module.processor
    for single in documents:
        whole, prompt = processor.sample(single), prompt_sample(processor, single)
        assert whole.input_ids[: len(prompt)].tolist() == prompt.input_ids.tolist()
        assert whole.labels[len(prompt)] != IGNORE
        begun = prompt_sample(processor, single, continued=True)
        assert len(prompt) < len(begun) < len(whole)


def recipe_of(prompt: object, tokenizer: Path) -> dict[str, Any]:
    """A recipe of `Recombined` with a prompt of the model."""
    arguments = {
        "vision": MODEL["init_args"]["vision"],
        "language": MODEL["init_args"]["language"],
        "tokenizer": str(tokenizer),
        "inputs": {
            "tiling": {"class_path": "lit_mm.tiling.Stretch", "init_args": {"size": 28}},
            "prompt": prompt,
        },
    }
    return {
        "model": {"class_path": "lit_mm.families.Recombined", "init_args": arguments},
        "stages": [{"name": "all", "train": {"connector": {"lr": 1e-3}}, "max_steps": 1}],
        "data": {"class_path": "lit_mm.datamodules.nano.NanoDocuments", "init_args": {"documents": 12}},
    }


@pytest.mark.parametrize(
    "prompt",
    [
        "template",
        "lit_mm.prompts.template.ChatTemplate",
        {
            "class_path": "lit_mm.prompts.template.ChatTemplate",
            "init_args": {"template": QWEN_3, "variables": {"enable_thinking": False}, "answers": "last"},
        },
    ],
)
def test_a_recipe_names_the_template(prompt: object, tokenizer: Path) -> None:
    with torch.device("meta"):
        module = RecipeCLI(recipe_of(prompt, tokenizer), "fit").model
    sample = module.processor.sample(document(0, pictures=1))
    learnt = sample.labels[sample.labels != IGNORE].tolist()
    assert module.processor.tokenizer.decode(learnt, skip_special=False).count("<|im_end|>") == (
        sum(turn.role == "assistant" for turn in document(0).turns) if isinstance(prompt, str) else 1
    )


def test_the_word_template_is_an_option_of_model_and_stage_and_stays_in_the_config_of_the_run(
    tokenizer: Path, tmp_path: Path
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe_of("lit_mm.prompts.plain.Plain", tokenizer)))
    words = ["--config", str(file), "--model.init_args.inputs.prompt", "template"]
    with torch.device("meta"):
        cli = RecipeCLI([*words, "--stages.all.inputs.prompt", "template"], "fit")
        again = RecipeCLI(yaml.safe_load(cli.resolved()), "fit")
    for each in (cli, again):
        assert isinstance(each.model.processor.prompt, ChatTemplate)
        processors = each.model.processors_of(each.stages[0])
        assert all(isinstance(processor.prompt, ChatTemplate) for processor in processors.values())
    assert again.resolved() == cli.resolved()


@pytest.mark.parametrize(
    ("word", "cure"),
    [("templat", "Did you mean 'template'"), ("chatty", "Give 'template', or its import path, such as package.Class")],
)
def test_another_word_than_template_is_refused(word: str, cure: str, tokenizer: Path) -> None:
    with pytest.raises(UserError) as refusal:
        RecipeCLI(recipe_of(word, tokenizer), "fit", build=False)
    assert f"model.init_args.inputs.prompt: there is no class {word}" in str(refusal.value)
    assert cure in str(refusal.value)
