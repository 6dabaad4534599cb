"""The tiny nano recipe of BLIP runs through all stages on the real command line; then it finds and writes captions."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from lit_mm.cli import main

RECIPE = Path(__file__).parents[2] / "experiments/blip.yaml"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(sys, "argv", ["lit_mm"])
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    torch.use_deterministic_algorithms(False)  # `fit` switches it on for its process


def test_all_stages_train_and_the_model_retrieves_and_writes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load(RECIPE.read_text())
    model = config["model"]["init_args"]
    model["vision"]["init_args"].update(image_size=28, width=16, layers=2, heads=2, weights=None)
    model["text"]["init_args"].update(vision_width=16, width=16, layers=1, heads=2, ffn_width=24)
    model.update(width=8, queue_size=8, candidates=4)
    config["data"]["init_args"].update(documents=12, global_batch=4, window=8, heldout_documents=9)
    for stage in config["stages"]:
        stage["max_steps"] = 2
    config |= {"track": False, "examine_documents": 9, "checkpoint_every": 1}
    Path("tiny.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert main(["fit", "--config", "tiny.yaml", "--run_dir", "run"]) in (0, None)
    with (place / "run/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["stage"] for row in rows] == [stage["name"] for stage in config["stages"] for _ in range(2)]
    matching = {"pretrain": "loss/itm", "retrieval": "loss/itm_finetune"}
    assert all(float(row[matching[row["stage"]]]) < 1 for row in rows if row["stage"] in matching)  # ln 2 = 0.69
    capsys.readouterr()
    assert main(["evaluate", "run", "--documents", "9", "--format", "json"]) in (0, None)
    figures = json.loads(capsys.readouterr().out)["accuracy"]
    assert {"image to text", "text to image, by contrast"} <= figures["skills"].keys()
    assert all(0 <= value <= 1 for value in figures["skills"].values())
    Image.new("RGB", (60, 20), "red").save("page.png")
    main(["generate", "run", "--image", "page.png", "--question", "describe the image", "--max_new_tokens", "2"])
    assert capsys.readouterr().out.endswith("\n")
