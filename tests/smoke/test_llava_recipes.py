"""The nano recipes of LLaVA, 1.5, NeXT and UHD and of VILA in tiny: every stage through the real command line."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_mm.cli import main

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
RECIPES = ("llava", "llava_1_5", "llava_next", "llava_uhd", "vila")


def tiny(recipe: str) -> dict[str, Any]:
    """The recipe with its stages and data, a few steps wide and long, from random weights."""
    config = yaml.safe_load((EXPERIMENTS / f"{recipe}.yaml").read_text())
    model = config["model"]["init_args"]
    model["vision"]["init_args"].update(image_size=28, width=16, layers=2, heads=2, select_layer=-2, weights=None)
    model["language"]["init_args"].update(width=16, layers=1, heads=2, kv_heads=1, ffn_width=32, weights=None)
    model["image_size"] = 28
    if "heads" in model.get("connector", {}).get("init_args", {}):
        model["connector"]["init_args"]["heads"] = 2
    config["data"]["init_args"].update(documents=12, global_batch=2, window=8, heldout_documents=9)
    for stage in config["stages"]:
        stage["max_steps"] = 2
        stage["data"].pop("global_batch", None)
    return config | {"track": False, "examine_documents": 9, "checkpoint_every": 1}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(sys, "argv", ["lit_mm"])
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    torch.use_deterministic_algorithms(False)  # `fit` switches it on for its process


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_trains_every_stage_and_can_be_asked_afterwards(
    recipe: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(recipe)
    (place / "tiny.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert main(["fit", "--config", "tiny.yaml", "--run_dir", "run"]) in (0, None)
    with (place / "run/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["stage"] for row in rows] == [stage["name"] for stage in config["stages"] for _ in range(2)]
    assert all(3 < float(row["loss"]) < 10 for row in rows)  # ln 512 = 6.2: a random model guesses among 512 tokens
    for row, stage in zip(rows[::2], config["stages"], strict=True):
        learns = {name.removeprefix("lr_") for name, rate in row.items() if name.startswith("lr_") and float(rate)}
        assert learns == set(stage["train"])
    capsys.readouterr()
    assert main(["evaluate", "run", "--documents", "9", "--format", "json"]) in (0, None)
    assert 0 <= json.loads(capsys.readouterr().out)["accuracy"]["overall"] <= 1


def test_inputs_of_a_stage_that_the_recipe_does_not_have_are_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny("llava")
    config["model"]["init_args"]["by_stage"] = {"pretrian": {"aspect": "crop"}}
    (place / "tiny.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit) as left:
        sys.exit(main(["fit", "--config", "tiny.yaml", "--run_dir", "run"]))
    assert left.value.code == 2
    assert "by_stage` names ['pretrian']; the recipe has the stages ['finetune', 'pretrain']" in capsys.readouterr().err
