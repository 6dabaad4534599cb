"""Tiny nano recipes of BLIP and BLIP-2 run through all stages on the real command line, then find and write texts."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from lit_mm.cli import main

pytestmark = pytest.mark.usefixtures("place")

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
VISION = {"image_size": 28, "width": 16, "layers": 2, "heads": 2, "weights": None}
# recipe -> part, "" for the model itself -> changed arguments
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "blip": {
        "": {"width": 8, "queue_size": 8, "candidates": 4},
        "vision": VISION,
        "text": {"vision_width": 16, "width": 16, "layers": 1, "heads": 2, "ffn_width": 24},
    },
    "blip2": {
        "": {"image_size": 28, "candidates": 4},
        "vision": VISION,
        "language": {"width": 16, "layers": 1, "heads": 2, "kv_heads": 1, "ffn_width": 32, "weights": None},
        "connector": {"queries": 4, "width": 16, "layers": 2, "heads": 2, "ffn_width": 24, "contrast_width": 8},
    },
}
MATCHING = {  # recipe -> stage -> column of its matching loss
    "blip": {"pretrain": "loss/itm", "retrieval": "loss/itm_finetune"},
    "blip2": {"represent": "loss/itm", "retrieval": "loss/itm"},
}


@pytest.mark.parametrize("recipe", SIZES)
def test_all_stages_train_and_the_model_retrieves_and_writes(
    recipe: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load((EXPERIMENTS / f"{recipe}.yaml").read_text())
    model = config["model"]["init_args"]
    for part, changes in SIZES[recipe].items():
        (model[part]["init_args"] if part else model).update(changes)
    config["data"]["init_args"].update(documents=12, global_batch=4, window=8, heldout_documents=9)
    for stage in config["stages"]:
        stage["max_steps"] = 2
    config |= {"track": False, "examine_documents": 9, "examine_every": 2, "checkpoint_every": 1}
    Path("tiny.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert main(["fit", "--config", "tiny.yaml", "--run_dir", "run"]) in (0, None)
    with (place / "run/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["stage"] for row in rows] == [stage["name"] for stage in config["stages"] for _ in range(2)]
    matching = MATCHING[recipe]
    assert all(float(row[matching[row["stage"]]]) < 1 for row in rows if row["stage"] in matching)  # ln 2 = 0.69
    capsys.readouterr()
    assert main(["evaluate", "run", "--documents", "9", "--format", "json"]) in (0, None)
    figures = json.loads(capsys.readouterr().out)["accuracy"]
    assert {"image to text", "text to image, by contrast"} <= figures["skills"].keys()
    assert all(0 <= value <= 1 for value in figures["skills"].values())
    Image.new("RGB", (60, 20), "red").save("page.png")
    main(["generate", "run", "--image", "page.png", "--question", "describe the image", "--max_new_tokens", "2"])
    assert capsys.readouterr().out.endswith("\n")
