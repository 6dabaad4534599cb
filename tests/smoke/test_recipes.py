"""Tiny nano recipes run through every stage on the real command line, and the trained models answer questions.

XComposer and XComposer2 are trained in test_compose.py and test_experiments.py.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from lit_mm.cli import main
from lit_mm.commands.recipe import RecipeCLI
from lit_mm.commands.trained import open_trained

pytestmark = pytest.mark.usefixtures("place")

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
LLAVA = ("llava", "llava_1_5", "llava_next", "llava_uhd", "vila")
RECIPES = (
    *(*LLAVA, "qwen_vl", "monkey", "xcomposer2_4khd", "recombined", "instructblip", "minigpt4"),
    pytest.param("adapters", marks=pytest.mark.slow),  # tests/distributed/test_adapters.py runs it, too
)


SIDES = {"size": 28, "tile": 28, "window": 28}  # pixels


def tiny(recipe: str) -> dict[str, Any]:
    """The recipe with its stages and data, but few and small steps, from random weights."""
    config = yaml.safe_load((EXPERIMENTS / f"{recipe}.yaml").read_text())
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    model["vision"]["init_args"].update(image_size=28, width=16, layers=2, heads=2, weights=None)
    model["language"]["init_args"].update(width=16, layers=1, heads=2, kv_heads=1, ffn_width=32, weights=None)
    if "heads" in model.get("connector", {}).get("init_args", {}):
        model["connector"]["init_args"]["heads"] = 2
    data.update(global_batch=2, window=8)
    if "documents" in data:
        data.update(documents=12, heldout_documents=0 if recipe == "recombined" else 9)
    for stage in config["stages"]:
        stage["max_steps"] = 2
        for part in stage["train"].values():
            part["from_step"] = min(part.get("from_step", 0), 1)
        stage.get("data", {}).pop("global_batch", None)
    if recipe in (*LLAVA, "adapters"):
        model["vision"]["init_args"]["select_layer"] = -2
        model["image_size"] = 28
    elif recipe == "qwen_vl":
        model["connector"]["init_args"]["grid_size"] = 2
        model["image_size"] = 56
    elif recipe == "monkey":
        model["connector"]["init_args"]["grid_size"] = 2
        model.update(size=[56, 56], window=28, ranks={"qkv": 2, "mlp": 2})
    elif recipe == "xcomposer2_4khd":
        model.update(tile=28, rank=2)
        data["heldout_source"]["init_args"]["count"] = 9
        for member in data["sources"] + config["stages"][1]["data"]["sources"]:
            member["source"]["init_args"]["count"] = 12
    elif recipe == "minigpt4":
        model["connector"]["init_args"].update(queries=4, width=16, layers=2, ffn_width=24)
        model["image_size"] = 28
    elif recipe == "recombined":
        model["injection"]["init_args"]["rank"] = 2
    elif recipe == "instructblip":
        model["connector"]["init_args"].update(queries=4, width=16, layers=2, ffn_width=24, contrast_width=8)
        model["image_size"] = 28
        data["heldout_source"]["init_args"]["count"] = 9
        for member in data["sources"] + config["stages"][-1]["data"]["sources"]:
            member["source"]["init_args"]["count"] = 12
    for inputs in (model.get("inputs", {}), *(stage.get("inputs", {}) for stage in config["stages"])):
        for tiling in (inputs.get("tiling"), *inputs.get("by_source", {}).values()):
            if tiling is not None:
                tiling["init_args"].update({key: side for key, side in SIDES.items() if key in tiling["init_args"]})
                if recipe == "monkey":
                    tiling["init_args"]["size"] = [56, 56]
    return config | {"track": False, "examine_documents": 9, "checkpoint_every": 1}


def written(config: dict[str, Any], name: str = "tiny.yaml") -> str:
    Path(name).write_text(yaml.safe_dump(config, sort_keys=False))
    return name


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_trains_every_stage_and_can_be_asked_afterwards(
    recipe: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(recipe)
    assert main(["fit", "--config", written(config), "--run_dir", "run"]) in (0, None)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory
    with (place / "run/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["stage"] for row in rows] == [stage["name"] for stage in config["stages"] for _ in range(2)]
    assert all(3 < float(row["loss"]) < 10 for row in rows)  # ln 512 = 6.2: a random model guesses among 512 tokens
    for number, stage in enumerate(config["stages"]):
        for step, row in enumerate(rows[2 * number : 2 * number + 2]):
            learns = {name.removeprefix("lr_") for name, rate in row.items() if name.startswith("lr_") and float(rate)}
            assert learns == {part for part, train in stage["train"].items() if train["from_step"] <= step}
    capsys.readouterr()
    if recipe == "recombined":
        Image.new("RGB", (60, 20), "red").save("page.png")
        main(["generate", "run", "--image", "page.png", "--question", "what?", "--max_new_tokens", "2"])
        assert capsys.readouterr().out.endswith("\n")
        return
    assert main(["evaluate", "run", "--documents", "9", "--format", "json"]) in (0, None)
    assert 0 <= json.loads(capsys.readouterr().out)["accuracy"]["overall"] <= 1
    if recipe in OTHER_VIEWS:
        ask_with_other_views(config, *OTHER_VIEWS[recipe])


OTHER_VIEWS = {  # changes of the inputs; what then becomes of 100 x 100 pixels: size of the first view, grid
    "qwen_vl": ({"tiling": {"class_path": "lit_mm.tiling.Stretch", "init_args": {"size": 84}}}, (84, 84), (1, 1)),
    "xcomposer2_4khd": (
        {"tiling": {"class_path": "lit_mm.tiling.Hd", "init_args": {"max_tiles": 9, "tile": 28}}},
        (28, 28),
        (3, 3),
    ),
}


def ask_with_other_views(config: dict, changes: dict, size: tuple[int, int], grid: tuple[int, int]) -> None:
    """Ask the same weights with another size or limit. Monkey's weights belong to their windows."""
    config["model"]["init_args"]["inputs"].update(changes)
    other, _, _ = open_trained("run", written(config, "other.yaml"))
    plan = other.processor.tiling(100, 100)
    assert (plan.views[0].size, plan.grid) == (size, grid)
    assert main(["evaluate", "run", "--config", "other.yaml", "--documents", "9"]) in (0, None)


def test_dense_text_is_examined_with_the_tiles_that_it_is_trained_with() -> None:
    with torch.device("meta"):
        cli = RecipeCLI(["--config", str(EXPERIMENTS / "xcomposer2_4khd.yaml")], "describe")
    asked, finetune = cli.model.processor, cli.model.processor_of(cli.stages[-1])
    tiles: dict[str, set[int]] = {}
    for document in cli.datamodule.heldout():
        for picture in document.pictures:
            plan = asked.tiling_of(document.source)(picture.height, picture.width)
            assert plan == finetune.tiling_of(document.source)(picture.height, picture.width)
            tiles.setdefault(document.skill, set()).add(math.prod(plan.grid))
    assert {skill for skill, counts in tiles.items() if max(counts) > 4} == {"read_small", "form", "table"}


def test_inputs_of_a_stage_that_do_not_go_with_the_parts_are_refused_before_the_first_step(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tiny("llava")
    config["stages"][0]["inputs"]["layout"] = "lit_mm.samples.GlobalThenTiles"
    with pytest.raises(SystemExit) as left:
        sys.exit(main(["fit", "--config", written(config), "--run_dir", "run"]))
    assert left.value.code == 2
    assert "stages.pretrain.inputs: the layout places 2 learned vectors" in capsys.readouterr().err
