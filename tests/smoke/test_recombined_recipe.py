"""experiments/recombined.yaml in tiny: every stage through the real command line, then an answer about an image."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from lit_mm.cli import main

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def tiny() -> dict[str, Any]:
    """The recipe with its stages and data, a few steps wide and long, from random weights."""
    config = yaml.safe_load((EXPERIMENTS / "recombined.yaml").read_text())
    model = config["model"]["init_args"]
    model["vision"]["init_args"].update(image_size=28, width=16, layers=1, heads=2, weights=None)
    model["language"]["init_args"].update(width=16, layers=1, heads=2, kv_heads=1, ffn_width=32, weights=None)
    model["injection"]["arguments"]["rank"] = 2
    for views in (model["inputs"], *model["by_stage"].values()):
        views["tiling"]["arguments"] = dict.fromkeys(views["tiling"]["arguments"], 28)
    config["data"]["init_args"].update(documents=12, global_batch=2, window=8, heldout_documents=0)
    for stage in config["stages"]:
        stage["max_steps"] = 1
        stage["data"].pop("global_batch", None)
    return config | {"track": False, "checkpoint_every": 1}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(sys, "argv", ["lit_mm"])
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    torch.use_deterministic_algorithms(False)  # `fit` switches it on for its process


def test_it_trains_a_step_of_each_stage_and_answers(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny()
    (place / "tiny.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    main(["fit", "--config", "tiny.yaml", "--run_dir", "run"])
    with (place / "run/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["stage"] for row in rows] == [stage["name"] for stage in config["stages"]]
    for row, stage in zip(rows, config["stages"], strict=True):
        assert 3 < float(row["loss"]) < 10  # ln 512 = 6.2: a random model guesses among 512 tokens
        assert {key for key, rate in row.items() if key.startswith("lr_") and float(rate)} == {
            f"lr_{part}" for part in stage["train"]
        }
    Image.new("RGB", (60, 20), "red").save("page.png")
    capsys.readouterr()
    main(["generate", "run", "--image", "page.png", "--question", "what?", "--max_new_tokens", "2"])
    assert capsys.readouterr().out.endswith("\n")
