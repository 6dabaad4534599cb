"""`describe --format json` gives the published parameter counts of the published recipes.

Our counts have no parameters after the features: CLIP's post layer-norm, and the last block if the one before is read.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

PAPER = Path(__file__).parents[2] / "experiments" / "paper"
LLAVA = {"vision": "vision", "connector": "projector", "newline": "image_newline", "language": "llm"}
XCOMPOSER2 = {"vision": "clip_vit_l", "connector": "vision_proj", "partial_lora": "plora", "language": "llm"}
XCOMPOSER2_4KHD = {part: name for part, name in XCOMPOSER2.items() if part != "connector"}  # published in two pieces
QWEN = {"vision": "vision_encoder", "language": "llm"}
MONKEY = QWEN | {"window_adapters": "lora", "projection": "ln_post_and_proj"}
PUBLISHED = {  # recipe -> golden file, its table, entry and total, and what the entry calls our parts
    "llava": ("llava_params", "models", "llava_v1_13b_224_linear", "total", LLAVA),
    "llava_1_5": ("llava_params", "models", "llava_1_5_7b", "total", LLAVA),
    "llava_next": ("llava_params", "models", "llava_next_7b", "total", LLAVA),
    "llava_uhd": ("llava_params", "models", "llava_uhd_v1_13b_144q", "total", LLAVA),
    "llava_uhd_arxiv": ("llava_params", "models", "llava_uhd_arxiv_march_2024_13b_64q", "total", LLAVA),
    "monkey": ("xcomposer_qwen_monkey_params", "counts", "monkey", "total", MONKEY),
    "qwen_vl": ("xcomposer_qwen_monkey_params", "counts", "qwen_vl", "total", QWEN),
    "vila": ("llava_params", "models", "vila_1_0_7b_code_mlp2x", "total", LLAVA),
    "xcomposer": ("xcomposer_qwen_monkey_params", "counts", "xcomposer1", "total", {}),
    "xcomposer2_4khd": ("xcomposer_qwen_monkey_params", "counts", "xcomposer2_4khd_7b", "total", XCOMPOSER2_4KHD),
    "xcomposer2": ("xcomposer_qwen_monkey_params", "counts", "xcomposer2_vl_7b_490", "total", XCOMPOSER2),
}
ELSEWHERE = {  # recipe -> test that compares its parts with published integers
    **dict.fromkeys(("blip", "blip_capfilt_l"), "test_blip_recipes.py"),
    **dict.fromkeys(("blip2_opt", "blip2_t5"), "test_blip2_recipes.py"),
    **dict.fromkeys(("instructblip_vicuna", "instructblip_t5"), "test_instructblip_recipes.py"),
    **dict.fromkeys(("cogvlm", "cogagent"), "test_cog_params.py"),
    "fuyu": "test_fuyu.py",
    **dict.fromkeys(("mini_gemini", "mini_gemini_gemma", "mini_gemini_hd"), "test_mini_gemini.py"),
    **dict.fromkeys(("minigpt4", "minigpt4_llama2"), "test_minigpt4.py"),
}
RECIPES = sorted(path for path in PAPER.glob("*.yaml") if path.stem not in ELSEWHERE)


def test_every_published_recipe_is_counted_by_a_test() -> None:
    assert PUBLISHED.keys() | ELSEWHERE.keys() >= {path.stem for path in PAPER.glob("*.yaml")}
    for recipe, file in ELSEWHERE.items():
        assert not (PAPER / f"{recipe}.yaml").exists() or recipe in (Path(__file__).parent / file).read_text()


def left_out(recipe: Path, components: dict[str, Any]) -> int:
    """Parameters of the published CLIP that come after the features."""
    vision = yaml.safe_load(recipe.read_text())["model"]["init_args"]["vision"]["init_args"]
    if not vision["weights"].startswith("clip:"):
        return 0
    clip = next(count for name, count in components.items() if name.startswith("clip"))
    blocks = -1 - vision.get("select_layer", -1)
    return clip["post_layernorm"] + blocks * clip["last_layer"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_described_totals_are_the_published_ones(
    path: Path, golden: Any, published_plan: Callable[[Path], dict[str, Any]]
) -> None:
    file, table, entry, total, names = PUBLISHED[path.stem]
    published = golden.json(file)[table][entry]
    unused = left_out(path, golden.json("llava_params")["components"])
    plan = published_plan(path)
    parts = plan["parameters"]["parts"]
    assert plan["parameters"]["total"] + unused == published[total]
    own = {names[part]: count + unused * (part == "vision") for part, count in parts.items() if part in names}
    assert own == {name: published[name] for name in names.values() if name in published}
    for number, stage in enumerate(plan["stages"], start=1):
        learns = published.get(f"trainable_stage{number}")
        if learns is not None:
            assert stage["trainable_total"] + unused * ("vision" in stage["trainable"]) == learns
