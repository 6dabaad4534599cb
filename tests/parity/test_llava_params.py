"""The recipes of LLaVA, 1.5, NeXT, UHD and VILA have the published numbers of parameters and tokens.

Our counts have no parameters after the features: the last block and the post layer-norm of CLIP.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_mm.commands.recipe import RecipeCLI
from lit_mm.module import MultimodalModule
from tests.tokens import Letters

PAPER = Path(__file__).parents[2] / "experiments" / "paper"
PROJECTOR, LINEAR = "lit_mm.connectors.mlp.MLPProjector", "lit_mm.connectors.linear.linear_projector"
SIZES = {  # by name in a published name: the language model's arguments
    "7b": {"width": 4096, "layers": 32, "heads": 32, "kv_heads": 32, "ffn_width": 11008},
    "13b": {"width": 5120, "layers": 40, "heads": 40, "kv_heads": 40, "ffn_width": 13824},
}
RECIPES = {  # published name -> recipe and what differs from it
    "llava_v1_{}_224_linear": ("llava", {}),
    "llava_v1_{}_336_linear": ("llava", {"image_size": 336, "vision.init_args.image_size": 336}),
    "llava_1_5_{}": ("llava_1_5", {}),
    "llava_next_{}": ("llava_next", {}),
    "vila_1_0_{}_code_mlp2x": ("vila", {}),
    "vila_paper_{}_linear": ("vila", {"connector": LINEAR}),
    "llava_uhd_v1_{}_144q": ("llava_uhd", {}),
    "llava_uhd_arxiv_march_2024_{}_64q": ("llava_uhd_arxiv", {}),
}


def build(recipe: str, size: str, changes: dict[str, Any]) -> tuple[MultimodalModule, list[Any]]:
    """Build the model of a recipe on the meta device. Returns it with its stages."""
    words = ["--config", str(PAPER / f"{recipe}.yaml")]
    sizes = {f"language.init_args.{name}": value for name, value in SIZES[size].items()}
    for name, value in ({"tokenizer": "nano"} | sizes | changes).items():
        words += [f"--model.init_args.{name}", str(value)]
    with torch.device("meta"):
        cli = RecipeCLI(words, "fit")
    return cli.model, cli.stages


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """LightningCLI warns about arguments that are pytest's."""
    monkeypatch.setattr(sys, "argv", ["lit_mm"])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", RECIPES)
def test_the_parts_have_the_published_counts(golden: Any, name: str, size: str) -> None:
    expected = golden.json("llava_params")
    if name.format(size) not in expected["models"]:
        pytest.skip(f"{name.format(size)} was not published")
    published = expected["models"][name.format(size)]
    recipe, changes = RECIPES[name]
    model, stages = build(recipe, size, changes)
    count = {part: sum(p.numel() for p in parameters.values()) for part, parameters in model.parts().items()}
    clip = next(
        c for n, c in expected["components"].items() if n.startswith("clip") and c["total"] == published["vision"]
    )
    unused = clip["total"] - clip["used_for_penultimate_features"]
    assert count["vision"] + unused == published["vision"]
    assert count["connector"] == published["projector"]
    if "projector_fixed_pos_table" in published:
        assert model.network.connector.positions.numel() == published["projector_fixed_pos_table"]
    assert count["language"] == published["llm"]
    assert count.get("newline") == published.get("image_newline")
    assert sum(count.values()) + unused == published["total"]
    if isinstance(published.get("visual_tokens"), int):
        assert model.processor.visual_tokens(480, 640) == published["visual_tokens"]
    for number, stage in enumerate(stages, start=1):
        learns = sum(count[part] for part in stage.train)
        if f"trainable_stage{number}" in published:
            assert learns + (unused if "vision" in stage.train else 0) == published[f"trainable_stage{number}"]


@pytest.mark.parametrize("family", ["llava_next", "llava_uhd"])
def test_the_published_numbers_of_visual_tokens_are_those_of_the_recipes(golden: Any, family: str) -> None:
    published = golden.json("llava_params")["visual_tokens"]
    model, _ = build(family, "7b", {})
    processor = replace(model.processor, tokenizer=Letters())
    sizes = [key.removeprefix(f"{family} ") for key in published if key.startswith(f"{family} ")]
    assert sizes
    for size in sizes:
        width, height = map(int, size.split("x"))
        assert processor.visual_tokens(height, width) == published[f"{family} {size}"], size


def test_every_published_llava_and_vila_model_is_checked(golden: Any) -> None:
    covered = {name.format(size) for name in RECIPES for size in SIZES}
    rest = {name for name in golden.json("llava_params")["models"] if name not in covered}
    assert all(name.endswith("downsample_projector") for name in rest), rest
