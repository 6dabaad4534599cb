"""The nano recipes of Qwen-VL, Monkey and XComposer2-4KHD in tiny: every stage through the real command line."""

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
from lit_mm.commands.trained import open_trained

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def tiny(recipe: str) -> dict[str, Any]:
    """The recipe with its stages and data, a few steps wide and long, from random weights."""
    config = yaml.safe_load((EXPERIMENTS / f"{recipe}.yaml").read_text())
    model = config["model"]["init_args"]
    model["vision"]["init_args"].update(image_size=28, width=16, layers=2, heads=2, weights=None)
    model["language"]["init_args"].update(width=16, layers=1, heads=2, kv_heads=1, ffn_width=32, weights=None)
    data = config["data"]["init_args"]
    data.update(global_batch=2, window=8)
    if recipe == "qwen_vl":
        model["connector"]["init_args"].update(grid_size=2, heads=2)
        model["image_size"], model["by_stage"]["pretrain"]["image_size"] = 56, 28
        data.update(documents=12, heldout_documents=9)
    elif recipe == "monkey":
        model["connector"]["init_args"].update(grid_size=2, heads=2)
        model.update(size=[56, 56], window=28, ranks={"qkv": 2, "mlp": 2})
        data.update(documents=12, heldout_documents=9)
    else:
        model.update(tile=28, rank=2)
        data["heldout_source"]["init_args"]["count"] = 9
        for member in data["sources"] + config["stages"][1]["data"]["sources"]:
            member["source"]["init_args"]["count"] = 12
    for stage in config["stages"]:
        stage["max_steps"] = 2
    return config | {"track": False, "examine_documents": 9, "checkpoint_every": 1}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(sys, "argv", ["lit_mm"])
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    torch.use_deterministic_algorithms(False)  # `fit` switches it on for its process


@pytest.mark.parametrize("recipe", ["qwen_vl", "monkey", "xcomposer2_4khd"])
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

    if recipe == "monkey":  # its weights belong to the windows they were trained with
        return
    # a config with another size or limit asks the same weights
    model = config["model"]["init_args"]
    model.update({"image_size": 84} if recipe == "qwen_vl" else {"limits": {"max_tiles": 9}})
    (place / "other.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    other, _, _ = open_trained("run", "other.yaml")
    plan = other.processor.tiling(100, 100)
    assert (plan.views[0].size, plan.grid) == (((84, 84), (1, 1)) if recipe == "qwen_vl" else ((28, 28), (3, 3)))
    assert main(["evaluate", "run", "--config", "other.yaml", "--documents", "9"]) in (0, None)
