"""`describe --format json` of the published recipes gives the published numbers of parameters.

Ours leave out what the features never pass: CLIP's post layer-norm, and the last block where the one before it is read.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_mm.cli import main

PAPER = Path(__file__).parents[2] / "experiments" / "paper"
LLAVA = {"vision": "vision", "connector": "projector", "newline": "image_newline", "language": "llm"}
XCOMPOSER2 = {"vision": "clip_vit_l", "connector": "vision_proj", "partial_lora": "plora", "language": "llm"}
PUBLISHED = {  # recipe -> golden file, its table and entry, and what the entry calls our parts
    "llava": ("llava_params", "models", "llava_v1_13b_224_linear", LLAVA),
    "llava_1_5": ("llava_params", "models", "llava_1_5_7b", LLAVA),
    "llava_next": ("llava_params", "models", "llava_next_7b", LLAVA),
    "vila": ("llava_params", "models", "vila_1_0_7b_code_mlp2x", LLAVA),
    "xcomposer2": ("xcomposer_qwen_monkey_params", "counts", "xcomposer2_vl_7b_490", XCOMPOSER2),
}


def left_out(recipe: Path, components: dict[str, Any]) -> int:
    """Parameters of the published CLIP that its features never pass."""
    vision = yaml.safe_load(recipe.read_text())["model"]["init_args"]["vision"]["init_args"]
    clip = next(count for name, count in components.items() if name.startswith("clip"))
    blocks = -1 - vision.get("select_layer", -1)
    return clip["post_layernorm"] + blocks * clip["last_layer"]


@pytest.mark.parametrize("path", sorted(PAPER.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_described_totals_are_the_published_ones(
    path: Path, golden: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if path.stem not in PUBLISHED:
        pytest.skip("no published integer is named for it in PUBLISHED")
    monkeypatch.setattr(sys, "argv", ["lit_mm"])
    file, table, entry, names = PUBLISHED[path.stem]
    published = golden.json(file)[table][entry]
    unused = left_out(path, golden.json("llava_params")["components"])
    main(["describe", "--config", str(path), "--format", "json"])
    plan = json.loads(capsys.readouterr().out)
    parts = plan["parameters"]["parts"]
    assert plan["parameters"]["total"] + unused == published["total"]
    assert {names[part]: count + unused * (part == "vision") for part, count in parts.items()} == {
        name: published[name] for name in names.values() if name in published
    }
    for number, stage in enumerate(plan["stages"], start=1):
        learns = published.get(f"trainable_stage{number}")
        if learns is not None:
            assert stage["trainable_total"] + unused * ("vision" in stage["trainable"]) == learns
