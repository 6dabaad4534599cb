"""experiments/modern.yaml builds at published sizes with each of its four ways of seeing, one line apart."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from lit_mm.commands.recipe import RecipeCLI
from lit_mm.stages.stage import apply_stage, check_recipe

RECIPE = Path(__file__).parents[2] / "experiments/modern.yaml"
WAY = re.compile(r"    # ([\w.-]+)\n    (?:# )?(<<: .*)\n")
LANGUAGE = 4_022_468_096  # parameters of Qwen3-4B


def ways() -> dict[str, str]:
    """Return name of a way -> recipe with its line in place of the active one."""
    text = RECIPE.read_text()
    assert text.count("\n    <<: ") == 1, "one way is active"
    lines = dict(WAY.findall(text))
    return {name: re.sub(r"\n    <<: .*", lambda _, line=line: f"\n    {line}", text) for name, line in lines.items()}


@pytest.mark.parametrize(
    ("name", "tokens", "parts"),
    [
        ("LLaVA-1.5", (729, 729), {}),
        ("LLaVA-NeXT", (1513, 2709), {"newline": 2560}),
        ("XComposer2", (1225, 1225), {"partial_lora": 481_296_384}),
        ("LLaVA-UHD", (144, 1014), {}),
    ],
)
def test_a_way_of_seeing_builds_with_its_number_of_visual_tokens(
    name: str, tokens: tuple[int, int], parts: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["lit_mm"])
    file = tmp_path / "modern.yaml"
    file.write_text(ways()[name])
    with torch.device("meta"):
        cli = RecipeCLI(["--config", str(file)], "fit")
    module = cli.model
    check_recipe(cli.stages, module.parts(), module.objectives)
    count = {part: sum(p.numel() for p in parameters.values()) for part, parameters in module.parts().items()}
    assert count["language"] == LANGUAGE
    assert {part: n for part, n in count.items() if part not in ("vision", "connector", "language")} == parts
    for stage, learning in zip(cli.stages, ({"connector"}, {"vision", "connector", "language"}), strict=True):
        apply_stage(module.parts(), stage)
        for part, parameters in module.parts().items():
            assert {p.requires_grad for p in parameters.values()} == {part in learning | parts.keys()}, part
    assert tuple(module.processor.visual_tokens(height, width) for height, width in ((336, 336), (672, 1008))) == tokens
    text = RECIPE.read_text()
    assert re.search(rf"#   {re.escape(name)} +{tokens[0]} and +{tokens[1]} ", text)
